"""Data sets and batches.

A batch is ``(images, labels)``: float32 (N, C, H, W), normalised, and int64 (N,), on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from mrl.data.batches import BatchPlan
from mrl.data.datasets import ImageDataset, Splits, load_splits
from mrl.data.errors import DataError
from mrl.data.memory_loader import MemoryLoader
from mrl.data.torch_loader import FileLoader

if TYPE_CHECKING:  # mrl.config needs Hydra; loading data does not
    from mrl.config import DataConfig

__all__ = ["DataError", "ImageDataset", "Loader", "Splits", "build_loader", "load_splits"]


class Loader(Protocol):
    """One rank's batches; a pure function of (seed, epoch, start), with no state to save."""

    @property
    def steps(self) -> int:
        """Batches of this rank in a whole epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from step ``start`` on: what a whole epoch gives after skipping that many."""


def build_loader(
    dataset: ImageDataset,
    *,
    cfg: DataConfig,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    train: bool,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Batches of ``dataset`` for one rank.

    Args:
        batch_size: of the global batch, over all ranks.
        train: shuffled, augmented, in whole batches, the same step on all ranks; put together in
            the order of ranks, their parts are the batch of one process. Otherwise: every image
            once, in order and unchanged; each rank has a contiguous part of the data set, and the
            ranks' numbers of steps may differ.

    Raises:
        DataError: if there are too few images for one batch, or a batch cannot be split evenly.
    """
    plan = BatchPlan(
        num_images=len(dataset),
        batch_size=batch_size,
        train=train,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    if isinstance(dataset.images, Tensor):
        return MemoryLoader(dataset, plan, mean=mean, std=std, flip=cfg.flip, pad=cfg.pad)
    return FileLoader(
        dataset,
        plan,
        mean=mean,
        std=std,
        image_size=cfg.image_size,
        flip=cfg.flip,
        workers=cfg.workers,
    )

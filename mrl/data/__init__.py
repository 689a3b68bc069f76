"""Data sets and batches.

A batch is ``(images, labels)``: float32 (N, C, H, W), normalised, and int64 (N,), on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from mrl.data.batches import BatchPlan
from mrl.data.datasets import ImageDataset, Splits, load_splits
from mrl.data.errors import DataError
from mrl.data.ffcv_loader import FFCVLoader
from mrl.data.memory_loader import MemoryLoader
from mrl.data.pixels import Pixels
from mrl.data.progressive import train_size
from mrl.data.torch_loader import FileLoader

if TYPE_CHECKING:  # mrl.config needs Hydra; loading data does not
    from mrl.config import DataConfig

__all__ = ["DataError", "ImageDataset", "Loader", "Pixels", "Splits", "build_loader", "load_splits"]


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
    pixels: Pixels,
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
        DataError: if there are too few images for one batch, a batch cannot be split evenly, or
            the loader asked for is not installed.
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
        return MemoryLoader(dataset, plan, pixels=pixels, flip=cfg.flip, pad=cfg.pad)
    sizes: dict[str, Any] = {
        "image_size": cfg.image_size,
        "size_at": partial(
            train_size,
            image_size=cfg.image_size,
            train_sizes=cfg.train_sizes,
            ramp_epochs=cfg.ramp_epochs,
        ),
    }
    if dataset.beton is not None:
        return FFCVLoader(
            dataset,
            plan,
            pixels=pixels,
            **sizes,
            flip=cfg.flip,
            threads=cfg.workers,
            os_cache=cfg.os_cache,
            quasi_random=cfg.quasi_random,
        )
    return FileLoader(
        dataset,
        plan,
        pixels=pixels,
        **sizes,
        flip=cfg.flip,
        workers=cfg.workers,
        skip_corrupt=cfg.on_corrupt.name == "skip",
        policy=cfg.rand_augment,
    )

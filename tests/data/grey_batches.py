"""Batches of one split in grey levels 0..255, unnormalised, to compare pixels."""

import torch
from torch import Tensor

from mrl.config import DataConfig
from mrl.data import Loader, Pixels, build_loader, load_splits

LEVEL = 1 / 255


def make_loader(
    cfg: DataConfig, *, train: bool, batch_size: int = 5, part: str = "train", **changes: int
) -> Loader:
    """Of images in grey levels 0..255."""
    return build_loader(
        getattr(load_splits(cfg), part),
        cfg=cfg,
        pixels=Pixels(mean=(0,) * 3, std=(LEVEL,) * 3),
        batch_size=batch_size,
        train=train,
        **{"seed": 0} | changes,
    )


def joined(loader: Loader, epoch: int = 0, start: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader.batches(epoch, start), strict=True)
    return torch.cat(images), torch.cat(labels)

"""Tiny images whose class is learnable by construction: a pattern of each class, plus noise."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mrl.data.batches import generator
from mrl.data.errors import DataError

NUM_CLASSES = 10
NUM_IMAGES = 512
GRID = 4  # cells along a side of a pattern; coarse, so that small shifts leave it recognisable
CONTRAST = 60  # grey levels from the mean to a cell of a pattern
NOISE = 30  # standard deviation, grey levels
SEED = 0  # one data set for every run, like the real ones


def make(
    *, num_images: int, num_classes: int, image_size: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(train, test), each (images uint8 (N, 3, S, S), labels int64 (N,)), classes balanced.

    Test has a quarter as many images as train, and at least one of each class.
    """
    check_counts(num_classes, num_images)
    patterns = class_patterns(num_classes, image_size)
    return (
        _draw(patterns, num_images, stream=1),
        _draw(patterns, max(num_images // 4, num_classes), stream=2),
    )


def check_counts(num_classes: int, num_images: int) -> None:
    """Refuse numbers of which no data set can be made."""
    if num_classes < 2 or num_images < num_classes:
        raise DataError(
            "synthetic data need data.num_classes >= 2 and data.num_images >= data.num_classes, "
            f"got {num_classes} classes and {num_images} images"
        )


def class_patterns(num_classes: int, image_size: int) -> Tensor:
    """The noiseless image of every class, float (C, 3, S, S) in 0..255."""
    random = generator(SEED, 0)
    cells = torch.randint(0, 2, (num_classes, 3, GRID, GRID), generator=random).float() * 2 - 1
    return 128 + CONTRAST * F.interpolate(cells, size=(image_size, image_size), mode="nearest")


def _draw(patterns: Tensor, count: int, *, stream: int) -> tuple[Tensor, Tensor]:
    random = generator(SEED, stream)
    labels = (torch.arange(count) % len(patterns))[torch.randperm(count, generator=random)]
    noise = NOISE * torch.randn((count, *patterns.shape[1:]), generator=random)
    return (patterns[labels] + noise).round().clamp(0, 255).to(torch.uint8), labels

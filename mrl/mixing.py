"""Mixed images with soft labels: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), by timm.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from mrl.config import OptimConfig

Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def build_mix(cfg: OptimConfig, *, num_classes: int, seed: int, rank: int) -> Mix:
    """``mix(images, labels (N,), step)`` -> (images, labels: (N,), or (N, C) where they are mixed).

    What is drawn depends on (seed, step, rank) alone, so that a resumed run equals a straight one.

    Raises:
        ValueError: if this rank's part of a batch is odd; images are mixed in pairs.
    """
    if not cfg.mixup and not cfg.cutmix:
        return lambda images, labels, step: (images, labels)
    from timm.data import Mixup  # takes a second

    # The loss smooths the labels, as it does those of unmixed images.
    mixup = Mixup(cfg.mixup, cfg.cutmix, label_smoothing=0.0, num_classes=num_classes)

    def mix(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        if len(images) % 2:
            raise ValueError(
                f"optim.mixup and optim.cutmix need an even number of images on each rank, got "
                f"{len(images)}: change optim.batch_size"
            )
        before = np.random.get_state()  # timm draws from NumPy's global generator
        np.random.seed(np.random.SeedSequence([seed, step, rank]).generate_state(4))
        try:
            return mixup(images, labels)
        finally:
            np.random.set_state(before)

    return mix

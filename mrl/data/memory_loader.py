"""Batches of a small data set that is kept in memory as uint8; augmentation on whole batches.

Shapes: N images, C channels, H x W pixels.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mrl.data.batches import BatchPlan, generator
from mrl.data.datasets import ImageDataset


class MemoryLoader:
    """See :class:`mrl.data.Loader`. ``flip`` and ``pad`` act only when the plan is for training."""

    def __init__(
        self,
        dataset: ImageDataset,
        plan: BatchPlan,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        flip: bool,
        pad: int,
    ) -> None:
        assert isinstance(dataset.images, Tensor)
        self.images_NCHW, self.labels_N = dataset.images, dataset.labels
        self.plan, self.flip, self.pad = plan, flip, pad
        self.mean, self.std = mean, std
        # Each image is mirrored in every other epoch, from a random side on: seen both ways in two
        # epochs, where independent draws would show a half of them one way twice (Jordan 2024).
        self.first_flips_N = flip & (torch.rand(len(dataset), generator=generator(plan.seed)) < 0.5)

    @property
    def steps(self) -> int:
        return self.plan.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step, indices in self.plan.indices(epoch, start):
            images_NCHW = self.images_NCHW[indices]
            if self.plan.train:
                flips_N = self.first_flips_N[indices] ^ (self.flip and epoch % 2 == 1)
                # Drawn for the global batch and then cut, so that ranks see what one process sees.
                shifts = draw_shifts(
                    self.plan.batch_size,
                    self.pad,
                    generator(self.plan.seed, epoch, step),
                )[self.plan.part]
                images_NCHW = augment(images_NCHW, flips_N, shifts, pad=self.pad)
            yield normalise(images_NCHW, self.mean, self.std), self.labels_N[indices]


def draw_shifts(count: int, pad: int, generator: torch.Generator) -> Tensor:
    """int64 (N, 2): how far to move each image down and right, each in -pad..pad pixels."""
    return torch.randint(-pad, pad + 1, (count, 2), generator=generator)


def augment(images_NCHW: Tensor, flips_N: Tensor, shifts_N2: Tensor, *, pad: int) -> Tensor:
    """Move each image by its shift, black pixels coming in, then mirror those to be flipped."""
    height, width = images_NCHW.shape[2:]
    padded = F.pad(images_NCHW, (pad, pad, pad, pad))
    # Every place where the image could be cut out again; none of them is a copy.
    cuts_NCYXHW = padded.unfold(2, height, 1).unfold(3, width, 1)
    down, right = (pad - shifts_N2).unbind(1)
    moved_NCHW = cuts_NCYXHW[torch.arange(len(images_NCHW)), :, down, right]
    return torch.where(flips_N[:, None, None, None], moved_NCHW.flip(3), moved_NCHW)


def normalise(images_NCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 0..255 -> float32 with mean 0 and standard deviation 1 in each channel."""
    scale, offset = (torch.tensor(v).view(-1, 1, 1) * 255 for v in (std, mean))
    return images_NCHW.float().sub_(offset).div_(scale)

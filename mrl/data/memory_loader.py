"""Batches of a small data set that is kept in memory as uint8; augmentation on whole batches.

Shapes: N images, C channels, H x W pixels.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mrl.data.batches import BatchPlan, generator
from mrl.data.datasets import ImageDataset
from mrl.data.pixels import Pixels


class MemoryLoader:
    """See :class:`mrl.data.Loader`. ``flip`` and ``pad`` act only when the plan is for training."""

    def __init__(
        self,
        dataset: ImageDataset,
        plan: BatchPlan,
        *,
        pixels: Pixels,
        flip: bool,
        pad: int,
    ) -> None:
        assert isinstance(dataset.images, Tensor)
        self.images_NCHW, self.labels_N = dataset.images, dataset.labels
        self.plan, self.flip, self.pad = plan, flip, pad
        self.mean, self.std = pixels.mean, pixels.std
        # Each image is mirrored in every other epoch, from a random side on: seen both ways in two
        # epochs, where independent draws would show a half of them one way twice (Jordan 2024).
        self.first_flips_N = flip & (torch.rand(len(dataset), generator=generator(plan.seed)) < 0.5)

    @property
    def steps(self) -> int:
        return self.plan.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for step, indices in self.plan.indices(epoch, start):
            images_NCHW = self.images_NCHW.index_select(0, indices)
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
    moved_NCHW = _moved(images_NCHW, shifts_N2, pad)
    both = torch.cat([moved_NCHW, moved_NCHW.flip(3)])
    count = len(images_NCHW)
    return both.index_select(0, torch.arange(count) + count * flips_N)


def _moved(images_NCHW: Tensor, shifts_N2: Tensor, pad: int) -> Tensor:
    """Cut every image out of its padded self, as one run of memory.

    ``index_select`` copies such runs whole: several times as fast as picking pixels by index.
    """
    count, channels, height, width = images_NCHW.shape
    padded = F.pad(images_NCHW, (pad, pad, pad, pad + 1))  # a run may end in the row below
    rows, columns = padded.shape[2:]
    down_N, right_N = (pad - shifts_N2).unbind(1)
    plane_NC = torch.arange(count * channels).view(count, channels) * (rows * columns)
    first_NC = plane_NC + (down_N * columns + right_N)[:, None]
    runs = padded.flatten().unfold(0, height * columns, 1)  # from every pixel on; not copied
    moved = runs.index_select(0, first_NC.flatten())
    return moved.view(count, channels, height, columns)[..., :width]


def normalise(images_NCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 0..255 -> float32 with mean 0 and standard deviation 1 in each channel."""
    scale, offset = (torch.tensor(v).view(-1, 1, 1) * 255 for v in (std, mean))
    return images_NCHW.float().sub_(offset).div_(scale)

"""Batches of image files, decoded by torch's DataLoader and cropped by Pillow.

Worker processes are started anew for each epoch, so that a loader has no state.
"""

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from mrl.data.batches import BatchPlan, generator, mix
from mrl.data.checks import rand_augment
from mrl.data.crops import EVAL_SHARE, draw_crops
from mrl.data.datasets import ImageDataset
from mrl.data.errors import DataError
from mrl.data.image_folder import CorruptImageError, decode
from mrl.data.memory_loader import normalise
from mrl.data.pixels import Pixels
from mrl.data.workers import from_workers, leave_signals_to_parent

Transform = Callable[[Image.Image, int, int], Image.Image]  # image, epoch, index
# Image uint8 (3, H, W) and label. What is wrong with a file is handed over, for the main process to
# decide, rather than raised in a worker, which would bury it in a traceback.
Item = tuple[Tensor, int] | DataError
LARGEST_RESIZED = 1 << 24  # pixels, of 4 bytes each


class FileLoader:
    """See :class:`mrl.data.Loader`.

    Args:
        size_at: epoch -> side of training images in pixels.
        workers: processes that decode; 0: the calling process does.
        skip_corrupt: leave files that cannot be decoded out of their batches, with a warning that
            names each file once; ``skipped`` holds them. Otherwise such a file is a DataError.
        policy: of RandAugment in timm's notation, for training; None: none.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        plan: BatchPlan,
        *,
        pixels: Pixels,
        image_size: int,
        size_at: Callable[[int], int],
        flip: bool,
        workers: int,
        skip_corrupt: bool,
        policy: str | None,
    ) -> None:
        if plan.train:
            transform: Transform = _TrainTransform(plan.seed, size_at, flip, policy, pixels)
        else:
            central = eval_transform(image_size, pixels.crop_ratio, pixels.interpolation)
            transform = partial(_alike, central)

        self.files = _Files(dataset, transform)
        self.plan, self.workers, self.skip_corrupt = plan, workers, skip_corrupt
        self.collate = partial(_collate, mean=pixels.mean, std=pixels.std)
        self.skipped: set[str] = set()

    @property
    def steps(self) -> int:
        return self.plan.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        steps = self.plan.indices(epoch, start)
        loader = DataLoader(
            self.files,
            batch_sampler=([(epoch, i) for i in batch.tolist()] for _, batch in steps),
            num_workers=self.workers,
            collate_fn=self.collate,
            worker_init_fn=leave_signals_to_parent,
            pin_memory=torch.cuda.is_available(),
            # Else it would draw a number from the global generator, so that a resumed run,
            # which starts an epoch's loader once more, would no longer equal a straight one.
            generator=generator(self.plan.seed, epoch),
        )
        lost = 0
        for images, labels, problems in from_workers(loader):
            self._report(problems)
            lost += len(problems)
            if not len(labels):
                raise DataError(f"not one image of a batch can be decoded: {problems[0]}")
            yield images, labels
        if lost and not self.plan.train:
            warnings.warn(
                f"{lost} of {self.plan.num_images} images were skipped in evaluation: numbers are "
                "of the others",
                stacklevel=2,
            )

    def _report(self, problems: list[DataError]) -> None:
        for problem in problems:
            if not isinstance(problem, CorruptImageError):
                raise problem
            if not self.skip_corrupt:
                raise CorruptImageError(f"{problem}, or skip such files: data.on_corrupt=skip")
            if str(problem) not in self.skipped:
                self.skipped.add(str(problem))
                warnings.warn(f"skipped, {len(self.skipped)} so far: {problem}", stacklevel=3)


def eval_transform(
    image_size: int, crop_ratio: float = EVAL_SHARE, interpolation: str = "bilinear"
) -> Callable[[Image.Image], Image.Image]:
    """The central square of a picture, ``image_size`` pixels on a side.

    Bit for bit torchvision's Resize and then CenterCrop. Of a thin strip, which would have more
    than ``LARGEST_RESIZED`` pixels when resized, only the square is: equal but for rounding.

    Args:
        crop_ratio: side of that square, as a share of the picture's shorter side.
        interpolation: Pillow's name of it, such as bilinear or bicubic; antialiased.
    """
    shorter = round(image_size / crop_ratio)
    resampling = Image.Resampling[interpolation.upper()]
    return partial(_central_square, size=image_size, shorter=shorter, resampling=resampling)


def _central_square(
    image: Image.Image, *, size: int, shorter: int, resampling: Image.Resampling
) -> Image.Image:
    width, height = (shorter * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    square = (left, top, left + size, top + size)
    if width * height <= LARGEST_RESIZED:
        return image.resize((width, height), resampling).crop(square)
    across, down = image.width / width, image.height / height
    part = (square[0] * across, square[1] * down, square[2] * across, square[3] * down)
    return image.resize((size, size), resampling, box=part)


def _alike(
    central: Callable[[Image.Image], Image.Image], image: Image.Image, epoch: int, index: int
) -> Image.Image:
    """In evaluation neither epoch nor index matters."""
    return central(image)


class _TrainTransform:
    """A random part of the picture, mirrored or not, then RandAugment if asked for."""

    def __init__(
        self,
        seed: int,
        size_at: Callable[[int], int],
        flip: bool,
        policy: str | None,
        pixels: Pixels,
    ) -> None:
        self.seed, self.size_at, self.flip = seed, size_at, flip
        self.policy, self.mean = policy, pixels.mean
        self.resampling = Image.Resampling[pixels.interpolation.upper()]

    def __call__(self, image: Image.Image, epoch: int, index: int) -> Image.Image:
        size = self.size_at(epoch)
        (box,), (mirrored,) = draw_crops(
            np.array([image.height]),
            np.array([image.width]),
            np.array([index]),
            seed=self.seed,
            epoch=epoch,
            flip=self.flip,
        )
        top, left, height, width = box.tolist()
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((size, size), self.resampling)
        if mirrored:
            image = ImageOps.mirror(image)
        if self.policy is None:
            return image
        with _seeded(mix(self.seed, epoch, index)):
            return _cached_policy(self.policy, size, self.mean)(image)


_cached_policy = cache(rand_augment)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's and NumPy's global generators, from which timm draws, put back afterwards."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed >> 32)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


class _Files(Dataset[Item]):
    """(epoch, index) -> one image; random crops depend on nothing else."""

    def __init__(self, dataset: ImageDataset, transform: Transform) -> None:
        self.paths, self.labels = dataset.images, dataset.labels
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        try:
            image = decode(bytes(self.paths[index]))
        except DataError as error:
            return error
        return pil_to_tensor(self.transform(image, epoch, index)), int(self.labels[index])


def _collate(
    items: list[Item], *, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor, list[DataError]]:
    """(images, labels, problems of the files that are left out)."""
    problems = [item for item in items if isinstance(item, DataError)]
    good = [item for item in items if not isinstance(item, DataError)]
    labels = torch.tensor([label for _, label in good], dtype=torch.int64)
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0, 3, 1, 1)
    return normalise(images, mean, std), labels, problems

"""Batches of image files, decoded by torch's DataLoader and cropped by torchvision."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from mrl.data.batches import BatchPlan, generator
from mrl.data.datasets import ImageDataset
from mrl.data.image_folder import decode
from mrl.data.memory_loader import normalise

RESIZE_RATIO = 256 / 224  # evaluation: shorter side to 256 and the central 224, in that proportion


class FileLoader:
    """See :class:`mrl.data.Loader`."""

    def __init__(
        self,
        dataset: ImageDataset,
        plan: BatchPlan,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        flip: bool,
        workers: int,
    ) -> None:
        transform = train_transform(image_size, flip) if plan.train else eval_transform(image_size)
        self.files = _Files(dataset, transform, plan.seed)
        self.plan, self.workers = plan, workers
        self.collate = partial(_collate, mean=mean, std=std)

    @property
    def steps(self) -> int:
        return self.plan.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        steps = self.plan.indices(epoch, start)
        return iter(
            DataLoader(
                self.files,
                batch_sampler=([(epoch, i) for i in batch.tolist()] for _, batch in steps),
                num_workers=self.workers,
                collate_fn=self.collate,
                pin_memory=torch.cuda.is_available(),
                # Else it would draw a number from the global generator, so that a resumed run,
                # which starts an epoch's loader once more, would no longer equal a straight one.
                generator=generator(self.plan.seed, epoch),
            )
        )


def train_transform(image_size: int, flip: bool) -> transforms.Compose:
    """ImageNet's usual: a random 8 % to 100 % of the area, mirrored with probability 1/2."""
    crop = transforms.RandomResizedCrop(image_size)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip()] if flip else [crop])


def eval_transform(image_size: int) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.Resize(round(image_size * RESIZE_RATIO)),
            transforms.CenterCrop(image_size),
        ]
    )


class _Files(Dataset[tuple[Tensor, int]]):
    """(epoch, index) -> (image uint8 (3, H, W), label); random crops depend on nothing else."""

    def __init__(self, dataset: ImageDataset, transform: transforms.Compose, seed: int) -> None:
        self.paths, self.labels = dataset.images, dataset.labels
        self.transform, self.seed = transform, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        image = decode(bytes(self.paths[index]))
        # torchvision draws from the global CPU generator, which is put back afterwards. The GPUs'
        # are left alone (torch.manual_seed would seed them too): dropout draws from those.
        with torch.random.fork_rng(devices=[]):
            state = generator(self.seed, epoch, index).get_state()
            torch.set_rng_state(state)
            image = self.transform(image)
        return pil_to_tensor(image), int(self.labels[index])


def _collate(
    items: list[tuple[Tensor, int]], *, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    images, labels = zip(*items, strict=True)
    return normalise(torch.stack(images), mean, std), torch.tensor(labels, dtype=torch.int64)

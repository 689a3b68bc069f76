"""The table of data sets: how each is loaded, its statistics, and the held-out slice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from mrl.data import fashion_mnist, image_folder, synthetic
from mrl.data.batches import generator
from mrl.data.beton import Beton, read_beton
from mrl.data.checks import check
from mrl.data.errors import DataError
from mrl.data.identity import names_of
from mrl.data.pixels import Pixels

if TYPE_CHECKING:  # mrl.config needs Hydra; training data does not
    from mrl.config import DataConfig

# Never the seed of a run: all runs of a study must hold out the same images.
HOLDOUT_SEED = 20220526
RESIZE_CHUNK = 2048  # images; bounds the float copy that resizing makes


@dataclass(kw_only=True, slots=True)
class ImageDataset:
    """Labelled images: pixels in memory, or places of images that are decoded when needed.

    Raises:
        DataError: if a label lies outside 0..C-1, with its value and index.
    """

    # uint8 (N, C, H, W), encoded paths (N,), see image_folder, or int64 (N,) numbers in `beton`
    images: Tensor | np.ndarray
    labels: Tensor  # int64 (N,)
    classes: list[str]
    beton: Beton | None = None
    root: Path = Path()  # folder below which encoded paths are names

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images but {len(self.labels)} labels")
        wrong = ((self.labels < 0) | (self.labels >= len(self.classes))).nonzero()
        if len(wrong):
            index = int(wrong[0])
            raise DataError(
                f"label {int(self.labels[index])} at index {index} is not one of the "
                f"{len(self.classes)} classes 0..{len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> ImageDataset:
        """The images at ``indices``, copied, in that order."""
        by = indices if isinstance(self.images, Tensor) else indices.numpy()
        return replace(self, images=self.images[by], labels=self.labels[indices])


@dataclass(kw_only=True, slots=True)
class Splits:
    """What a run trains on (train), chooses on (holdout) and only reports on (test)."""

    train: ImageDataset
    holdout: ImageDataset
    test: ImageDataset
    classes: list[str]
    pixels: Pixels  # of the data set
    in_channels: int
    lost: list[str]  # held-out files that a run noted and that are gone


@dataclass(kw_only=True, slots=True, frozen=True)
class Source:
    """One data set: ``load`` returns the whole of train, and test."""

    load: Callable[[DataConfig], tuple[ImageDataset, ImageDataset]]
    pixels: Pixels


def load_splits(cfg: DataConfig, noted: Mapping[str, Any] | None = None) -> Splits:
    """Load a data set, fetching it if need be, and hold ``cfg.holdout`` images out of train.

    Which images are held out depends on the data set and ``cfg.holdout`` alone. Under several
    processes let one of them call this first, so that files are fetched once.

    Args:
        noted: what a run noted of this data set: its classes, in their order, and the names of
            the files that it held out. They are held out again, whatever came to the folder since.

    Raises:
        DataError: for files that cannot be found, fetched or used, and for unusable values.
    """
    source, noted = SOURCES[cfg.name.name], noted or {}
    check(cfg)
    whole, test = (
        in_class_order(part, noted.get("classes", part.classes)) for part in source.load(cfg)
    )
    held_out, there = noted.get("holdout"), names_of(whole)
    if held_out is None or there is None:
        train, holdout = hold_out(whole, cfg.holdout)
    else:
        train, holdout = hold_out_again(whole, there, {*held_out})
    return Splits(
        train=train,
        holdout=holdout,
        test=test,
        classes=whole.classes,
        pixels=source.pixels,
        in_channels=len(source.pixels.mean),
        lost=sorted({*(held_out or ())} - {*(there or ())}),
    )


def in_class_order(dataset: ImageDataset, classes: Sequence[str]) -> ImageDataset:
    """The data set with its labels counted in ``classes``, if these are its own in another order.

    Folders may sort otherwise on another system; their images come in the order of the labels.
    """
    if list(classes) == dataset.classes or sorted(classes) != sorted(dataset.classes):
        return dataset
    place = torch.tensor([classes.index(name) for name in dataset.classes])
    renamed = replace(dataset, labels=place[dataset.labels], classes=list(classes))
    return renamed.subset(renamed.labels.argsort(stable=True))


def hold_out(whole: ImageDataset, count: int) -> tuple[ImageDataset, ImageDataset]:
    """(the rest, ``count`` images), each in the order of ``whole``; always the same images."""
    if not 0 <= count < len(whole):
        raise DataError(
            f"data.holdout={count} must be at least 0 and below the {len(whole)} training images"
        )
    order = torch.randperm(len(whole), generator=generator(HOLDOUT_SEED))
    return whole.subset(order[count:].sort().values), whole.subset(order[:count].sort().values)


def hold_out_again(
    whole: ImageDataset, names: Sequence[str], held_out: Set[str]
) -> tuple[ImageDataset, ImageDataset]:
    """(the rest, the images ``held_out``); ``names`` are those of the images of ``whole``."""
    chosen = torch.tensor([name in held_out for name in names], dtype=torch.bool)
    train, holdout = (whole.subset(part.nonzero()[:, 0]) for part in (~chosen, chosen))
    return train, holdout


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, size, size), antialiased."""
    if images.shape[2:] == (size, size):
        return images
    return torch.cat(
        [
            F.interpolate(chunk.float(), size=(size, size), mode="bilinear", antialias=True)
            .round()
            .to(torch.uint8)
            for chunk in images.split(RESIZE_CHUNK)
        ]
    )


def _root(cfg: DataConfig) -> Path:
    return Path(cfg.root).expanduser()  # the shell leaves the ~ of data.root=~/pictures alone


def _fashion_mnist(cfg: DataConfig) -> tuple[ImageDataset, ImageDataset]:
    splits = fashion_mnist.load(_root(cfg), download=cfg.download)
    train, test = (
        ImageDataset(
            images=resize(images, cfg.image_size), labels=labels, classes=fashion_mnist.CLASSES
        )
        for images, labels in (splits["train"], splits["test"])
    )
    return train, test


def _cifar(cfg: DataConfig) -> tuple[ImageDataset, ImageDataset]:
    kind = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}[cfg.name.name]
    return _cifar_split(kind, cfg, train=True), _cifar_split(kind, cfg, train=False)


def _cifar_split(kind: str, cfg: DataConfig, *, train: bool) -> ImageDataset:
    try:
        split = getattr(torchvision.datasets, kind)(_root(cfg), train=train, download=cfg.download)
    except (RuntimeError, OSError) as error:  # not found or corrupt; no connection or permission
        raise DataError(
            f"cannot get {kind} in {_root(cfg).absolute()}: {error}. Run once with a "
            "connection and data.download=true, or unpack the archive of the 'python version' there"
        ) from error
    images = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    return ImageDataset(
        images=resize(images, cfg.image_size),
        labels=torch.tensor(split.targets, dtype=torch.int64),
        classes=list(split.classes),
    )


def _image_folder(cfg: DataConfig) -> tuple[ImageDataset, ImageDataset]:
    classes = None if cfg.classes is None else Path(cfg.classes)
    if cfg.loader.name == "ffcv":
        return _beton_splits(_root(cfg), classes)
    train, test = (
        ImageDataset(images=paths, labels=labels, classes=names, root=_root(cfg))
        for paths, labels, names in image_folder.scan(_root(cfg), classes)
    )
    return train, test


def _beton_splits(root: Path, classes_file: Path | None) -> tuple[ImageDataset, ImageDataset]:
    train, test = read_beton(root / "train.beton"), read_beton(root / "val.beton")
    if train.classes != test.classes:
        raise DataError(
            f"{train.path} and {test.path} hold other classes ({len(train.classes)} and "
            f"{len(test.classes)}, or in another order): make both with scripts/write_ffcv.py"
        )
    wanted = train.classes if classes_file is None else image_folder.read_classes(classes_file)
    return _of_classes(train, wanted), _of_classes(test, wanted)


def _of_classes(beton: Beton, wanted: list[str]) -> ImageDataset:
    """The file's images of these classes, in the order of the file; labels count in ``wanted``."""
    if missing := sorted({*wanted} - {*beton.classes}):
        raise DataError(
            f"data.classes lists {image_folder.some(missing)}, which {beton.path} does not hold"
        )
    label_of = np.full(len(beton.classes), -1)
    label_of[[beton.classes.index(name) for name in wanted]] = np.arange(len(wanted))
    labels = label_of[beton.samples["label"]]
    (numbers,) = np.nonzero(labels >= 0)
    return ImageDataset(
        images=numbers, labels=torch.from_numpy(labels[numbers]), classes=wanted, beton=beton
    )


def _synthetic(cfg: DataConfig) -> tuple[ImageDataset, ImageDataset]:
    classes = [f"class {c}" for c in range(cfg.num_classes or synthetic.NUM_CLASSES)]
    train, test = (
        ImageDataset(images=images, labels=labels, classes=classes)
        for images, labels in synthetic.make(
            num_images=cfg.num_images or synthetic.NUM_IMAGES,
            num_classes=len(classes),
            image_size=cfg.image_size,
        )
    )
    return train, test


# Fashion-MNIST's statistics were computed from its 60000 training images; the others are the usual
# published ones.
SOURCES = {
    "fashion_mnist": Source(load=_fashion_mnist, pixels=Pixels(mean=(0.2860,), std=(0.3530,))),
    "cifar10": Source(
        load=_cifar, pixels=Pixels(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
    ),
    "cifar100": Source(
        load=_cifar, pixels=Pixels(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
    ),
    "imagefolder": Source(
        load=_image_folder, pixels=Pixels(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    ),
    "synthetic": Source(load=_synthetic, pixels=Pixels(mean=(0.5,) * 3, std=(0.25,) * 3)),
}


def noted_pixels(noted: Mapping[str, Any], cfg: DataConfig) -> Pixels:
    """Those that a run noted; runs of older versions had those of their data set."""
    if "pixels" in noted:
        return Pixels.from_dict(noted["pixels"])
    return SOURCES[cfg.name.name].pixels

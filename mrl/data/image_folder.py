"""One's own pictures: ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*`` (or ``val``)."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from mrl.data.errors import DataError

# Paths are kept as one array of bytes: a list of a million strings would be copied, page by page,
# into the memory of every loader process, as each look at a string changes its reference count.
Scanned = tuple[np.ndarray, Tensor, list[str]]  # encoded paths (N,), labels int64 (N,), classes


def scan(root: Path) -> tuple[Scanned, Scanned]:
    """(train, test): the image files below each class folder, in alphabetical order.

    Test is ``test`` if that has class folders, and otherwise ``val`` (ImageNet's own test images,
    for example, have no labels).

    Raises:
        DataError: if a folder is missing or empty, or the classes of the two splits differ.
    """
    train = _scan_split(_need(root / "train"))
    test_folder = next((root / s for s in ("test", "val") if _class_names(root / s)), None)
    if test_folder is None:
        raise DataError(
            f"no folder of test images: {root.absolute()} needs test/CLASS/ or val/CLASS/ "
            f"with the same classes as train/"
        )
    test = _scan_split(test_folder)
    only_train, only_test = sorted({*train[2]} - {*test[2]}), sorted({*test[2]} - {*train[2]})
    if only_train or only_test:
        raise DataError(
            f"the class folders of {root / 'train'} and {test_folder} differ: "
            f"only in train: {_some(only_train)}; only in {test_folder.name}: {_some(only_test)}"
        )
    return train, test


def decode(encoded_path: bytes) -> Image.Image:
    """The image as RGB.

    Raises:
        DataError: naming the file, if it cannot be decoded in full.
    """
    path = os.fsdecode(encoded_path)
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types, SyntaxError among them
        raise DataError(f"cannot decode the image {path}: {error}. Replace or delete it") from error


def _need(folder: Path) -> Path:
    if not _class_names(folder):
        raise DataError(
            f"no class folders in {folder.absolute()}: data.root must be a folder with "
            "train/CLASS/IMAGES and test/CLASS/IMAGES (or val/)"
        )
    return folder


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _scan_split(folder: Path) -> Scanned:
    paths: list[bytes] = []
    labels: list[int] = []
    classes = _class_names(folder)
    for label, name in enumerate(classes):
        found = sorted(_image_files(folder / name))
        if not found:
            raise DataError(
                f"no images in {folder / name} (known endings: {', '.join(IMG_EXTENSIONS)})"
            )
        paths += found
        labels += [label] * len(found)
    return np.array(paths, dtype=np.bytes_), torch.tensor(labels, dtype=torch.int64), classes


def _image_files(folder: Path) -> list[bytes]:
    return [
        os.fsencode(os.path.join(directory, file))
        for directory, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(IMG_EXTENSIONS) and not file.startswith(".")
    ]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"

"""One's own pictures: ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*`` (or ``val``)."""

import os
import warnings
from collections import Counter
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from mrl.data.colours import to_rgb
from mrl.data.errors import DataError

# Paths are kept as one array of bytes: a list of a million strings would be copied, page by page,
# into the memory of every loader process, as each look at a string changes its reference count.
Scanned = tuple[np.ndarray, Tensor, list[str]]  # encoded paths (N,), labels int64 (N,), classes
# What a file may hold, whatever its ending says. Others that Pillow opens are no pictures of pixels
# (EPS, for which it would start Ghostscript).
FORMATS = ["JPEG", "PNG", "BMP", "DIB", "GIF", "JPEG2000", "PPM", "TIFF", "WEBP"]
if find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    FORMATS.append("AVIF")
# Pillow refuses larger pictures; at half that size it warns, of each in each worker and epoch.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class CorruptImageError(DataError):
    """A file that is there and can be read, but not decoded in full."""


def scan(root: Path, classes_file: Path | None = None) -> tuple[Scanned, Scanned]:
    """(train, test): the image files below each class folder, in alphabetical order.

    Test is ``test`` if that has class folders, and otherwise ``val`` (ImageNet's own test images,
    for example, have no labels).

    Args:
        classes_file: names of the class folders to use, one a line, in the order of their labels;
            None: all, in alphabetical order.

    Raises:
        DataError: if a folder is missing or empty, or the classes of the two splits differ.
    """
    wanted = None if classes_file is None else read_classes(classes_file)
    train = _scan_split(_need(root / "train"), wanted)
    test_folder = next((root / s for s in ("test", "val") if _class_names(root / s)), None)
    if test_folder is None:
        raise DataError(
            f"no folder of test images: {root.absolute()} needs test/CLASS/ or val/CLASS/ "
            f"with the same classes as train/"
        )
    test = _scan_split(test_folder, wanted)
    only_train, only_test = sorted({*train[2]} - {*test[2]}), sorted({*test[2]} - {*train[2]})
    if only_train or only_test:
        raise DataError(
            f"the class folders of {root / 'train'} and {test_folder} differ: "
            f"only in train: {some(only_train)}; only in {test_folder.name}: {some(only_test)}"
        )
    return train, test


def read_classes(path: Path) -> list[str]:
    """The class names in a text file: one a line, blank lines left out.

    Raises:
        DataError: if it cannot be read, names no class, or names one twice.
    """
    try:
        lines = path.expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the list of classes {path}: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if not names or repeated:
        reason = f"it repeats {some(repeated)}" if names else "it is empty"
        raise DataError(f"cannot use the list of classes {path}: {reason}")
    return names


def decode(encoded_path: bytes) -> Image.Image:
    """The picture as 8-bit RGB, on white where it is transparent, see :func:`mrl.data.colours`.

    Raises:
        CorruptImageError: naming the file, if it cannot be decoded in full, or not rightly.
        DataError: naming the file, if it cannot be read at all, as when a mount is gone.
    """
    path = os.fsdecode(encoded_path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error}") from error
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as image:
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise _corrupt(path, f"it is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise many types, SyntaxError among them
        raise _corrupt(path, str(error).rstrip(".") or repr(error)) from error


def _corrupt(path: str, reason: str) -> CorruptImageError:
    return CorruptImageError(f"cannot decode the image {path}: {reason}. Replace or delete it")


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


def _scan_split(folder: Path, wanted: list[str] | None) -> Scanned:
    paths: list[bytes] = []
    labels: list[int] = []
    there = _class_names(folder)
    classes = there if wanted is None else wanted
    if missing := sorted({*classes} - {*there}):
        raise DataError(f"data.classes lists {some(missing)}, of which {folder} has no folders")
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


def some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"

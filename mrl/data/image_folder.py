"""One's own pictures: ``ROOT/train/CLASS/*`` and ``ROOT/test/CLASS/*`` (or ``val``)."""

import os
import warnings
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from mrl.data.class_folders import class_folders, find_pictures, repeated, same_name, say
from mrl.data.colours import to_rgb
from mrl.data.errors import DataError, some

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
    """A file that is there and can be read, but not decoded in full, or not rightly."""


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
    train, test = class_folders(root / "train"), _test_folders(root)
    if not train:
        raise DataError(
            f"no class folders in {(root / 'train').absolute()}: data.root must be a folder with "
            "train/CLASS/IMAGES and test/CLASS/IMAGES (or val/)"
        )
    if not test:
        raise DataError(
            f"no folder of test images: {root.absolute()} needs test/CLASS/ or val/CLASS/ "
            f"with the same classes as train/"
        )
    scanned = _scan_split(train, wanted), _scan_split(test, wanted)
    if wanted is None:
        _check_same(train, test)
    if shared := _shared_folders(scanned[0][0], scanned[1][0]):
        say(
            f"warning: {len(shared)} folder(s) are linked into both train and test, so that models "
            f"are judged on what they are trained on: {some(shared)}"
        )
    return scanned


def read_classes(path: Path) -> list[str]:
    """The class names in a text file of UTF-8: one a line, blank lines left out.

    Raises:
        DataError: if it cannot be read, names no class, or names one twice.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read the list of classes {path}: {error}. It must be a text file in UTF-8"
        ) from error
    # Windows' editors begin a file with a byte order mark, which joining files moves into the text.
    lines = text.replace("\ufeff", "").splitlines()
    names = [same_name(line.strip()) for line in lines if line.strip()]
    twice = repeated(names)
    if not names or twice:
        reason = f"it repeats {some(twice)}" if names else "it is empty"
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


def _test_folders(root: Path) -> dict[str, Path]:
    return next((found for s in ("test", "val") if (found := class_folders(root / s))), {})


def _shared_folders(train_N: np.ndarray, test_N: np.ndarray) -> list[str]:
    """The real folders that hold pictures of both splits."""
    of_train, of_test = (
        {os.path.realpath(folder) for folder in set(map(os.path.dirname, paths_N.tolist()))}
        for paths_N in (train_N, test_N)
    )
    return sorted(map(os.fsdecode, of_train & of_test))


def _check_same(train: dict[str, Path], test: dict[str, Path]) -> None:
    only_train, only_test = sorted({*train} - {*test}), sorted({*test} - {*train})
    if only_train or only_test:
        train_root, test_root = (next(iter(one.values())).parent for one in (train, test))
        raise DataError(
            f"the class folders of {train_root} and {test_root} differ: "
            f"only in train: {some(only_train)}; only in {test_root.name}: {some(only_test)}"
        )


def _scan_split(folders: dict[str, Path], wanted: list[str] | None) -> Scanned:
    classes = list(folders) if wanted is None else wanted
    if missing := sorted({*classes} - {*folders}):
        root = next(iter(folders.values())).parent
        raise DataError(f"data.classes lists {some(missing)}, of which {root} has no folders")
    found = find_pictures(folders[name] for name in classes)
    for name, paths in zip(classes, found, strict=True):
        if not paths:
            raise DataError(
                f"no images in {folders[name]} (known endings: {', '.join(IMG_EXTENSIONS)})"
            )
    labels = [label for label, paths in enumerate(found) for _ in paths]
    files = np.array([path for paths in found for path in paths], dtype=np.bytes_)
    return files, torch.tensor(labels, dtype=torch.int64), classes

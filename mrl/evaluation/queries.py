"""Images to judge that lie in class folders: ``ROOT/CLASS/IMAGES``, with no training part."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from mrl.data import DataError, ImageDataset
from mrl.data.image_folder import some


def load_queries(
    root: str | Path, classes_map: Mapping[str, Sequence[str]] | None = None
) -> ImageDataset:
    """The images below every class folder; with a map, below those that it names.

    Raises:
        DataError: if there are no class folders, one has no images, or the map names one that is
            not there.
    """
    folder = Path(root).expanduser()
    present = _class_folders(folder)
    classes = present if classes_map is None else sorted(classes_map)
    absent = sorted({*classes} - {*present})
    if absent:
        raise DataError(f"the classes map names folders that {folder} lacks: {some(absent)}")
    if len(classes) < len(present):
        print(f"{folder}: {len(present) - len(classes)} folders are not in the map and left out")
    try:
        found = make_dataset(str(folder), {c: i for i, c in enumerate(classes)}, IMG_EXTENSIONS)
    except FileNotFoundError as error:
        raise DataError(f"class folders without images in {folder}: {error}") from error
    shown = [(p, y) for p, y in found if not os.path.basename(p).startswith(".")]
    return ImageDataset(
        images=np.array([os.fsencode(path) for path, _ in shown], dtype=np.bytes_),
        labels=torch.tensor([label for _, label in shown], dtype=torch.int64),
        classes=list(classes),
        root=folder,
    )


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"queries.root={folder} is not a folder")
    names = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not names:
        raise DataError(f"queries.root={folder} has no class folders: it needs ROOT/CLASS/IMAGES")
    return sorted(names)

"""Images to judge that lie in class folders: ``ROOT/CLASS/IMAGES``, with no training part."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mrl.data import DataError, ImageDataset
from mrl.data.class_folders import class_folders, find_pictures, same_name, say
from mrl.data.errors import some


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
    classes = sorted(present if classes_map is None else map(same_name, classes_map))
    absent = sorted({*classes} - {*present})
    if absent:
        raise DataError(f"the classes map names folders that {folder} lacks: {some(absent)}")
    if len(classes) < len(present):
        say(f"{folder}: {len(present) - len(classes)} folders are not in the map and left out")
    found = find_pictures(present[name] for name in classes)
    empty = [name for name, paths in zip(classes, found, strict=True) if not paths]
    if empty:
        raise DataError(f"class folders without images in {folder}: {some(empty)}")
    return ImageDataset(
        images=np.array([path for paths in found for path in paths], dtype=np.bytes_),
        labels=torch.tensor([c for c, paths in enumerate(found) for _ in paths]),
        classes=classes,
        root=folder,
    )


def _class_folders(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"queries.root={folder} is not a folder")
    found = class_folders(folder)
    if not found:
        raise DataError(f"queries.root={folder} has no class folders: it needs ROOT/CLASS/IMAGES")
    return found

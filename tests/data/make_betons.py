"""Folders of pictures in FFCV's format."""

from pathlib import Path
from typing import Any

from mrl.data import image_folder
from mrl.data.ffcv_writer import WriteSettings, write_split


def write_betons(pictures: Path, **settings: Any) -> Path:
    """train.beton and val.beton in the folder of pictures, which is returned."""
    splits = image_folder.scan(pictures)
    for name, scanned in zip(("train", "val"), splits, strict=True):
        path = pictures / f"{name}.beton"
        write_split(path, scanned, WriteSettings(**settings), workers=0, skip_corrupt=False)
    return pictures

"""FFCV's file format (.beton, version 2) and the manifest that we keep beside each file.

A file is: header; one descriptor for each field; one record for each image; the pixels, in pages;
and a table of where each image's bytes are. Nothing here needs FFCV. The manifest (train.json for
train.beton) names the classes and fixes everything in the file but the pixels, so that a broken
file, or that of another data set, is refused before training.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO

import numpy as np

from mrl.data.class_folders import same_name
from mrl.data.errors import DataError

FORMAT = 1  # of the manifest
VERSION = 2  # of the .beton format
JPEG, RAW = 0, 1  # how an image's pixels are stored
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_images", "<u8"),
        ("table_at", "<u8"),
    ]
)
FIELD = np.dtype([("kind", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
SAMPLE = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
PLACE = np.dtype([("image", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
IMAGE_KIND, LABEL_KIND = 2, 1
SAMPLES_AT = HEADER.itemsize + 2 * FIELD.itemsize  # bytes from the start


@dataclass(kw_only=True, slots=True, frozen=True)
class Beton:
    """A file that was checked against its manifest."""

    path: Path
    classes: list[str]
    samples: np.ndarray  # SAMPLE (N,)
    digest: str  # of all but the pixels; two files with the same one hold the same images


def fields() -> np.ndarray:
    """The descriptors of our two fields, image and label."""
    described = np.zeros(2, FIELD)
    for one, name, kind in zip(
        described, (b"image", b"label"), (IMAGE_KIND, LABEL_KIND), strict=True
    ):
        one["kind"] = kind
        one["name"][: len(name)] = np.frombuffer(name, np.uint8)
    return described


def read_beton(path: Path) -> Beton:
    """The file's classes and records.

    Raises:
        DataError: if the file or its manifest is missing, damaged, or does not fit the other.
    """
    path = path.absolute()
    if not path.is_file():
        raise DataError(
            f"no file {path}, which data.loader=ffcv reads: make it from the folders of images "
            f"with python scripts/write_ffcv.py {quote(str(path.parent))}, or use data.loader=torch"
        )
    manifest = _read_manifest(path)
    size = path.stat().st_size
    if size != manifest["bytes"]:
        raise _broken(path, f"it has {size} bytes and should have {manifest['bytes']}")
    with path.open("rb") as file:
        header, samples, digest = _read_index(path, file)
    if digest != manifest["digest"] or header["num_images"] != manifest["num_images"]:
        raise _broken(path, f"its contents are not those that {manifest_path(path).name} describes")
    classes = [same_name(name) for name in manifest["classes"]]
    return Beton(path=path, classes=classes, samples=samples, digest=digest)


def index_digest(header: bytes, descriptors: bytes, samples: bytes, table: bytes) -> str:
    """SHA-256 over all but the pixels."""
    return hashlib.sha256(header + descriptors + samples + table).hexdigest()


def manifest_path(path: Path) -> Path:
    return path.with_suffix(".json")


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Put the manifest beside the .beton ``path``, all of it or nothing."""
    temporary = path.with_name(f".{manifest_path(path).name}.{os.getpid()}.partial")
    try:
        temporary.write_text(json.dumps({"format": FORMAT} | manifest, indent=1) + "\n")
        temporary.replace(manifest_path(path))
    finally:
        temporary.unlink(missing_ok=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    place = manifest_path(path)
    try:
        manifest = json.loads(place.read_text())
        known = manifest["format"] == FORMAT
        wrong = [k for k in ("classes", "num_images", "bytes", "digest") if k not in manifest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _broken(path, f"its manifest {place} cannot be used: {error!r}") from error
    if not known or wrong:
        raise _broken(path, f"its manifest {place} is of another version")
    return manifest


def _read_index(path: Path, file: BinaryIO) -> tuple[np.ndarray, np.ndarray, str]:
    """(header, samples, digest of all but the pixels)."""
    raw_header = file.read(HEADER.itemsize)
    descriptors = file.read(2 * FIELD.itemsize)
    if len(descriptors) != 2 * FIELD.itemsize:
        raise _broken(path, "it is too short")
    header = np.frombuffer(raw_header, HEADER)[0]
    if header["version"] != VERSION or descriptors != fields().tobytes():
        raise _broken(path, f"it is no .beton of version {VERSION} with an image and a label")
    samples = file.read(int(header["num_images"]) * SAMPLE.itemsize)
    file.seek(int(header["table_at"]))
    digest = index_digest(raw_header, descriptors, samples, file.read())
    return header, np.frombuffer(samples, SAMPLE), digest


def _broken(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot use {path}: {reason}. Make both files again with python scripts/write_ffcv.py"
    )

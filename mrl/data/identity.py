"""What a data set is, by its content: to know it again when a run goes on or is judged."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mrl.data.errors import DataError

if TYPE_CHECKING:
    from mrl.data.datasets import ImageDataset

_THREADS = 16  # that ask for sizes at once: a file system in a network answers late


@dataclass(slots=True, frozen=True)
class Identity:
    """Digests (SHA-256) of one part of a data set.

    ``content`` is of the files' names below the root and their sizes, in whatever order and place
    they are; of pixels and labels where these are in memory; of a .beton but for its pixels.
    ``exact`` is also of the order, the labels, the times at which files were last written, and
    which files they are: pictures of one size and time, out of an archive, may change places.
    """

    content: str
    exact: str


def identify(dataset: ImageDataset) -> Identity:
    """What ``dataset`` is.

    Raises:
        DataError: if a file is gone.
    """
    labels = _bytes(dataset.labels)
    if isinstance(dataset.images, Tensor):
        digest = _digest(labels, _bytes(dataset.images))
        return Identity(digest, digest)
    if dataset.beton is not None:
        digest = _digest(labels, dataset.beton.digest.encode(), dataset.images.tobytes())
        return Identity(digest, digest)
    names, facts_N4 = _names(dataset.images, dataset.root), _facts(dataset.images)
    lines = sorted(f"{name}\0{size}" for name, size in zip(names, facts_N4[:, 0], strict=True))
    return Identity(
        _digest(*(os.fsencode(line) + b"\n" for line in lines)),
        _digest(labels, dataset.images.tobytes(), facts_N4.tobytes()),
    )


def names_of(dataset: ImageDataset) -> list[str] | None:
    """The files' names below the data set's root; None: the images are in no files of their own."""
    if isinstance(dataset.images, Tensor) or dataset.beton is not None:
        return None
    return _names(dataset.images, dataset.root)


def _names(paths_N: np.ndarray, root: Path) -> list[str]:
    start = len(os.fsencode(root / "x")) - 1  # Path(".") / "x" is "x"
    return [os.fsdecode(path[start:]) for path in paths_N.tolist()]


def _facts(paths_N: np.ndarray) -> np.ndarray:
    """uint64 (N, 4): bytes, when written and when changed in nanoseconds since 1970, and inode."""

    def of(paths: np.ndarray) -> list[tuple[int, int, int, int]]:
        try:
            found = [os.stat(path) for path in paths.tolist()]
        except OSError as error:
            raise DataError(f"cannot read an image: {error}") from error
        return [(s.st_size, s.st_mtime_ns % 2**64, s.st_ctime_ns % 2**64, s.st_ino) for s in found]

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = pool.map(of, np.array_split(paths_N, _THREADS))
        return np.array([facts for part in parts for facts in part], np.uint64).reshape(-1, 4)


def _digest(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data

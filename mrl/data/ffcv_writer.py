"""Image files -> one .beton file that FFCV reads, with the same bytes on every machine and run.

FFCV's own writer is not used: a picture that its workers cannot decode makes it wait for ever, and
which images it compresses differs from run to run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch.utils.data import DataLoader, Dataset

from mrl.data import beton
from mrl.data.crops import uniforms
from mrl.data.errors import DataError
from mrl.data.image_folder import CorruptImageError, Scanned, decode
from mrl.data.workers import from_workers, leave_signals_to_parent
from mrl.progress import progress

PAGE = 8 << 20  # bytes; FFCV's default, the unit of reading without the page cache
CHUNK = 16  # images that a worker hands over at once
# Which images are compressed is drawn from it: one data set for all runs.
SEED = 20220526

Encoded = tuple[int, int, int, bytes]  # mode, height, width, data


@dataclass(kw_only=True, slots=True, frozen=True)
class WriteSettings:
    """How pixels are stored; the defaults are the paper's (Appendix C).

    Raises:
        DataError: naming the value that is out of range.
    """

    max_side: int = 500  # pixels; larger images are scaled down to it
    jpeg_probability: float = 0.5  # the others are stored as plain pixels: larger, faster
    jpeg_quality: int = 90

    def __post_init__(self) -> None:
        if not 1 <= self.max_side <= 16384:
            raise DataError(f"the longest side must be 1 to 16384 pixels, got {self.max_side}")
        if not 0 <= self.jpeg_probability <= 1:
            raise DataError(f"the JPEG probability must be 0 to 1, got {self.jpeg_probability}")
        if not 1 <= self.jpeg_quality <= 100:
            raise DataError(f"the JPEG quality must be 1 to 100, got {self.jpeg_quality}")


def write_split(
    path: Path, scanned: Scanned, settings: WriteSettings, *, workers: int, skip_corrupt: bool
) -> dict[str, Any]:
    """Write ``path`` and then its manifest, which is returned; each appears when it is whole.

    Args:
        scanned: paths, labels and classes, see :func:`mrl.data.image_folder.scan`.
        skip_corrupt: leave out pictures that cannot be decoded; the manifest names them.

    Raises:
        DataError: naming a picture that cannot be decoded, or if FFCV's OpenCV is missing.
        OSError: if the file cannot be written, as on a full disk.
    """
    _opencv()  # before any work
    paths, labels, classes = scanned
    images = _encoded(paths, settings, workers, path.name)
    with _temporary(path) as file:
        written, skipped = _write(file, images, labels.numpy(), settings, skip_corrupt)
        manifest = written | {
            "classes": classes,
            "bytes": file.tell(),
            "skipped": skipped,
            "settings": asdict(settings),
        }
    beton.write_manifest(path, manifest)
    return manifest


def encode(image: np.ndarray, index: int, settings: WriteSettings) -> Encoded:
    """The stored form of one image, uint8 (H, W, 3); image ``index`` of the data set."""
    cv2 = _opencv()
    image = shrink(image, settings.max_side)
    height, width = image.shape[:2]
    drawn = uniforms((SEED,), np.array([index]), 1).item()
    if drawn >= settings.jpeg_probability:
        return beton.RAW, height, width, image.tobytes()
    quality = [int(cv2.IMWRITE_JPEG_QUALITY), settings.jpeg_quality]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    return beton.JPEG, height, width, data.tobytes()


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Down to ``max_side`` by averaging over areas, where the image is larger."""
    cv2 = _opencv()
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    if scale >= 1:
        return image
    size = (max(int(width * scale), 1), max(int(height * scale), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _write(
    file: BinaryIO,
    images: Iterator[Encoded | str],
    labels: np.ndarray,
    settings: WriteSettings,
    skip_corrupt: bool,
) -> tuple[dict[str, Any], list[str]]:
    """(what the manifest says of the records, messages about pictures left out)."""
    page = _page_size(settings.max_side)
    samples = np.zeros(len(labels), beton.SAMPLE)
    places = np.zeros(len(labels), beton.PLACE)
    skipped: list[str] = []
    position = _up(beton.SAMPLES_AT + samples.nbytes, page)
    file.seek(position)
    count = 0
    for image, label in zip(images, labels, strict=True):
        if isinstance(image, str):
            if not skip_corrupt:
                raise CorruptImageError(image)
            skipped.append(image)
            continue
        mode, height, width, data = image
        if len(data) > _up(position, page) - position:  # an image lies within one page
            position = _up(position, page)
            file.seek(position)
        file.write(data)
        samples[count] = ((mode, width, height, position), label)
        places[count] = (count, position, len(data))
        position += len(data)
        count += 1
    if not count:
        raise DataError(f"not one of {len(labels)} pictures can be decoded: {skipped[0]}")
    # Whole pages are read, the last one too.
    position = _up(position, page)
    file.seek(position)
    header = np.array((beton.VERSION, 2, page, count, position), beton.HEADER)
    parts = [header, beton.fields(), samples[:count], places[:count]]
    head, described, records, table = (part.tobytes() for part in parts)
    file.write(table)
    file.seek(0)
    file.write(head + described + records)
    file.seek(0, os.SEEK_END)
    return {
        "num_images": count,
        "digest": beton.index_digest(head, described, records, table),
    }, skipped


class _Encoding(Dataset[Encoded | str]):
    """index -> the stored form of an image, or what is wrong with it."""

    def __init__(self, paths: np.ndarray, settings: WriteSettings) -> None:
        self.paths, self.settings = paths, settings

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Encoded | str:
        try:
            image = decode(bytes(self.paths[index]))
        except CorruptImageError as error:
            return str(error)
        return encode(np.array(image), index, self.settings)


def _encoded(
    paths: np.ndarray, settings: WriteSettings, workers: int, name: str
) -> Iterator[Encoded | str]:
    """In order, made by worker processes, not many ahead of what was written."""
    chunks = DataLoader(
        _Encoding(paths, settings),
        batch_size=CHUNK,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=leave_signals_to_parent,
    )
    with progress(name, len(paths), "img", leave=True) as bar:
        for chunk in from_workers(chunks):
            yield from chunk
            bar.update(len(chunk))


@contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when it is complete, and else leaves no trace."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _page_size(max_side: int) -> int:
    """A power of 2 into which the largest image fits."""
    return max(PAGE, 1 << (3 * max_side**2 - 1).bit_length())


def _up(position: int, page: int) -> int:
    return -(-position // page) * page


def _opencv() -> Any:
    try:
        return import_module("cv2")
    except ImportError as error:
        raise DataError(
            f"writing .beton files needs OpenCV, which comes with FFCV ({error}): install it with "
            "bash scripts/install_ffcv.sh"
        ) from error

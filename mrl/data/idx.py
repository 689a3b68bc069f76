"""Reading idx files, the format of MNIST and Fashion-MNIST.

An idx file is: two zero bytes, a type code, the number of axes, each axis' length as a big-endian
32-bit integer, then the elements, the last axis running fastest.
"""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mrl.data.errors import DataError

UINT8 = 0x08  # type code of the only element type that these data sets use
LARGEST = 2**30  # bytes; EMNIST's largest file has half as many


def read_idx(path: Path, *, num_axes: int, sha256: str | None = None) -> Tensor:
    """The uint8 tensor in an idx file, gzipped (``.gz``) or not.

    Args:
        num_axes: axes that the tensor must have: 3 for images (N, H, W), 1 for labels (N,).
        sha256: what the SHA-256 of the *uncompressed* file must be; None: not checked.

    Raises:
        DataError: naming the file, if it cannot be read, is corrupt, or is another file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            shape = _shape(path, file.read(4 + 4 * num_axes), num_axes)
            # Not all that there is: some kilobytes of .gz can hold gigabytes.
            content = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _unusable(path, str(error)) from error
    if len(content) != math.prod(shape):
        has = "more" if len(content) > math.prod(shape) else f"{len(content)}"
        raise _unusable(path, f"shape {shape} needs {math.prod(shape)} bytes, but it has {has}")
    digest = hashlib.sha256(_header(shape) + content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise _unusable(path, f"the SHA-256 of its content is {digest}, not {sha256}")
    # Copied because the bytes are read-only and tensors are not.
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).view(shape)


def _shape(path: Path, header: bytes, num_axes: int) -> tuple[int, ...]:
    expected = bytes([0, 0, UINT8, num_axes])
    if header[:4] != expected or len(header) < 4 + 4 * num_axes:
        raise _unusable(
            path, f"it starts with {header[:4].hex() or 'nothing'}, not with {expected.hex()}"
        )
    shape = struct.unpack(f">{num_axes}I", header[4:])
    if math.prod(shape) > LARGEST:
        raise _unusable(path, f"shape {shape} is larger than any data set in this format")
    return shape


def _header(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, UINT8, len(shape), *shape)


def _unusable(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot use {path}: {reason}. The file is damaged or is not the one expected: "
        "delete it, so that it is fetched again, or put a good copy in its place"
    )

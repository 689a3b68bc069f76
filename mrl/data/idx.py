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


def read_idx(path: Path, *, num_axes: int, sha256: str | None = None) -> Tensor:
    """The uint8 tensor in an idx file, gzipped (``.gz``) or not.

    Args:
        num_axes: axes that the tensor must have: 3 for images (N, H, W), 1 for labels (N,).
        sha256: what the SHA-256 of the *uncompressed* file must be; None: not checked.

    Raises:
        DataError: naming the file, if it cannot be read, is corrupt, or is another file.
    """
    content = _read(path)
    header = 4 + 4 * num_axes
    expected = bytes([0, 0, UINT8, num_axes])
    if content[:4] != expected or len(content) < header:
        raise _unusable(
            path, f"it starts with {content[:4].hex() or 'nothing'}, not with {expected.hex()}"
        )
    shape = struct.unpack(f">{num_axes}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise _unusable(
            path,
            f"shape {shape} needs {header + math.prod(shape)} bytes, but it has {len(content)}",
        )
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise _unusable(path, f"the SHA-256 of its content is {digest}, not {sha256}")
    # Copied because the bytes are read-only and tensors are not.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy()).view(shape)


def _read(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _unusable(path, str(error)) from error


def _unusable(path: Path, reason: str) -> DataError:
    return DataError(
        f"cannot use {path}: {reason}. The file is damaged or is not the one expected: "
        "delete it, so that it is fetched again, or put a good copy in its place"
    )

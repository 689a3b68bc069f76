"""Embeddings and labels of other models, from .npy and .parquet files.

A .npy file holds embeddings (N, D), or labels (N,).  A .parquet file holds one item a row: its
numbers in the list column ``embedding``, its class in the column ``label``.

Shapes: N items, D embedding width.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrl.evaluation.row_file import RowFile

EMBEDDING, LABEL = "embedding", "label"  # columns of a .parquet file

_CHUNK_BYTES = 64 * 2**20  # looked at in one go


def read_embeddings(path: Path) -> tuple[Tensor, np.ndarray | None]:
    """Embeddings (N, D) as they are stored, and the labels that a .parquet file has beside them.

    A .npy file is mapped, not read.

    Raises:
        ValueError: if the file is of another kind, cannot be read, or does not hold (N, D) numbers
            of 16, 32 or 64 bits that are all finite, in rows that are not all zero.
        OSError: if it is not there.
    """
    labels = None
    if _kind(path) == ".npy":
        array = _mapped(path)
    else:
        columns = _read_parquet(path, [EMBEDDING])
        array = _stacked(path, columns[EMBEDDING])
        labels = columns.get(LABEL)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{path} must hold embeddings (items, width), got shape {array.shape}")
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(
            f"{path} must hold float16, float32 or float64 numbers, got {array.dtype}: "
            "convert them first"
        )
    z_ND = torch.from_numpy(array)
    _check_rows(z_ND, path)
    return z_ND, labels


def read_labels(path: Path) -> np.ndarray:
    """Labels (N,), integers or strings.

    Raises:
        ValueError: if the file is of another kind, cannot be read, or holds anything else.
        OSError: if it is not there.
    """
    if _kind(path) == ".npy":
        return check_labels(_load(path), path)
    return check_labels(_read_parquet(path, [LABEL])[LABEL], path)


def check_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    """The labels, with strings as numpy's own; ValueError unless they are integers or strings."""
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"{path} must hold one label for each item, got shape {labels.shape}")
    if labels.dtype.kind == "O" and all(isinstance(label, str) for label in labels):
        labels = labels.astype(str)
    if labels.dtype.kind not in "iuU":
        raise ValueError(f"labels must be integers or strings, {path} has {labels.dtype}")
    if labels.dtype.kind in "iu" and labels.min() < 0:
        raise ValueError(f"labels must not be negative, {path} has {labels.min()}")
    return labels


def _kind(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    if path.suffix not in (".npy", ".parquet"):
        raise ValueError(f"{path} is of no known type: give a .npy or a .parquet file")
    return path.suffix


def _load(path: Path, mode: Any = None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        text = str(error).splitlines()[0]
        if "Object arrays" in text or "Python objects" in text:
            text = "it holds Python objects (pickle), which could run code: save plain numbers"
        raise ValueError(f"{path} cannot be read: {text}") from error


def _mapped(path: Path) -> np.ndarray:
    """The array in the file, in rows and of this machine's byte order; a copy where it is not."""
    header = _load(path, "r")
    if header.flags.c_contiguous and header.dtype.isnative:
        return RowFile(path).mapped()
    return np.ascontiguousarray(header, header.dtype.newbyteorder("="))


def _read_parquet(path: Path, needed: list[str]) -> dict[str, np.ndarray]:
    """The columns of the file by name.

    Raises:
        ValueError: also if no library that reads .parquet is installed.
    """
    import pandas as pd

    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise ValueError(
            f"{path}: reading .parquet files needs pyarrow (pip install pyarrow); .npy files are "
            "read without"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    missing = [name for name in needed if name not in frame]
    if missing:
        raise ValueError(f"{path} needs a column {missing[0]!r}, it has {', '.join(frame)}")
    return {name: frame[name].to_numpy() for name in (EMBEDDING, LABEL) if name in frame}


def _stacked(path: Path, rows: np.ndarray) -> np.ndarray:
    """Lists of numbers, one for each item, as (N, D)."""
    widths = {len(row) if isinstance(row, np.ndarray) else None for row in rows}
    if len(widths) != 1 or None in widths:
        raise ValueError(f"{path}: column {EMBEDDING!r} must hold lists of one and the same length")
    return np.stack(rows.tolist())


def _check_rows(z_ND: Tensor, path: Path) -> None:
    step = max(1, _CHUNK_BYTES // (z_ND.shape[1] * z_ND.element_size()))
    for start, rows in zip(range(0, len(z_ND), step), z_ND.split(step), strict=True):
        for wrong_N, what in (
            (~torch.isfinite(rows).all(1), "has NaN or infinite values"),
            ((rows == 0).all(1), "is all zeros, which has no direction: drop such items"),
        ):
            if bool(wrong_N.any()):
                row = start + int(wrong_N.int().argmax())
                others = int(wrong_N.sum()) - 1
                more = f" (and {others} more within {len(rows)} rows)" if others else ""
                raise ValueError(f"{path}: row {row} {what}{more}")

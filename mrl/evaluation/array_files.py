"""Embeddings and labels of other models, from .npy and .parquet files.

A .npy file holds embeddings (N, D), or labels (N,).  A .parquet file holds one item a row: its
numbers in the list column ``embedding``, its class in the column ``label``.

Shapes: N items, D embedding width.
"""

from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from mrl.evaluation.file_kinds import check_content, kind_of
from mrl.evaluation.parquet_files import as_labels, as_rows, read_columns
from mrl.evaluation.row_file import RowFile

EMBEDDING, LABEL = "embedding", "label"  # columns of a .parquet file

_CHUNK_BYTES = 64 * 2**20  # looked at in one go


def read_embeddings(path: Path, *, with_labels: bool = True) -> tuple[Tensor, np.ndarray | None]:
    """Embeddings (N, D) as they are stored, and the labels that a .parquet file has beside them.

    A .npy file is mapped, not read.

    Raises:
        ValueError: if the file is of another kind, cannot be read, or does not hold (N, D) numbers
            of 16, 32 or 64 bits that are all finite, in rows that are not all zero; or for labels
            as :func:`read_labels`.
        OSError: if it is not there.
    """
    labels = None
    if _suffix(path) == ".npy":
        array = _mapped(path)
    else:
        columns = read_columns(path, EMBEDDING, (LABEL,) if with_labels else ())
        array = as_rows(columns[EMBEDDING], EMBEDDING, path)
        if LABEL in columns:
            labels = _checked_labels(as_labels(columns[LABEL], LABEL, path), path)
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
    """Labels (N,): integers of any type, or strings, numpy's own or Python's.

    Raises:
        ValueError: if the file is of another kind, cannot be read, or holds anything else.
        OSError: if it is not there.
    """
    if _suffix(path) == ".npy":
        return _checked_labels(_mapped(path), path)
    column = read_columns(path, LABEL)[LABEL]
    return _checked_labels(as_labels(column, LABEL, path), path)


def _checked_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"{path} must hold one label for each item, got shape {labels.shape}")
    if labels.dtype.kind not in "iuUO":  # of objects there are only strings, from .parquet files
        raise ValueError(
            f"labels must be integers or strings, {path} has {labels.dtype}: convert them first"
        )
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise ValueError(f"labels must not be negative, {path} has {labels.min()}")
    return labels


def _suffix(path: Path) -> str:
    """.npy or .parquet."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a .npy or a .parquet file")
    if not path.is_file():  # opening a pipe would wait for its writer
        raise ValueError(f"{path} is a pipe or a device: give a .npy or a .parquet file")
    if path.suffix not in (".npy", ".parquet"):
        what, cure = kind_of(path)
        raise ValueError(
            f"{path} is of no known type: give a .npy or a .parquet file (it is {what}: {cure})"
        )
    return path.suffix


def _mapped(path: Path) -> np.ndarray:
    """The array in the file, in rows and of this machine's byte order; a copy where it is not."""
    check_content(path)
    header = _header(path)
    if header.ndim and header.flags.c_contiguous and header.dtype.isnative:
        return RowFile(path).mapped()
    return np.array(header, header.dtype.newbyteorder("="), order="C")


def _header(path: Path) -> np.ndarray:
    """The array in the file, mapped."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OverflowError, SyntaxError, TokenError) as error:
        raise ValueError(f"{path} cannot be read: {_what_is_wrong(error)}") from error
    if (left := path.stat().st_size - array.offset - array.nbytes) > 0:
        raise ValueError(
            f"{path} is {left} bytes longer than its header says, as after a transfer as text, "
            "which changes line ends: copy it again, as it is"
        )
    return array


def _what_is_wrong(error: Exception) -> str:
    """What numpy's error says, without its advice for those who write Python."""
    text = str(error).splitlines()[0]
    if "Object arrays" in text or "Python objects" in text:
        return "it holds Python objects (pickle), which could run code: save plain numbers"
    if "greater than file size" in text or text.startswith("EOF: reading"):
        return "it is cut short: copy it again"
    return f"its header is damaged ({text})"


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

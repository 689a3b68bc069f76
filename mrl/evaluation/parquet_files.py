"""Columns of .parquet files as numpy arrays, of exactly the type that they are stored in.

(By way of pandas, whole numbers with a gap would become float64, which lacks most of those above
2**53.)

Shapes: N items, D embedding width.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mrl.evaluation.file_kinds import check_content


def read_columns(path: Path, needed: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """The column ``needed``, and those of ``others`` that there are, as Arrow's chunked arrays.

    Raises:
        ValueError: if the file is no .parquet file or lacks the column, or if no library that reads
            such files is installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(
            f"{path}: reading .parquet files needs pyarrow (pip install pyarrow); .npy files are "
            "read without"
        ) from error
    check_content(path)
    try:
        present = parquet.read_schema(path).names
        names = [name for name in (needed, *others) if name in present]
        # partitioning=None: else folders called label=3 would become columns
        table = parquet.read_table(path, columns=names, partitioning=None)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if needed not in names:
        raise ValueError(f"{path} needs a column {needed!r}, it has {', '.join(present)}")
    return dict(zip(table.column_names, table.columns, strict=True))


def as_rows(column: Any, name: str, path: Path) -> np.ndarray:
    """Lists of numbers, one for each item, as (N, D).

    Raises:
        ValueError: for items or numbers that are null, and for lists of different lengths.
    """
    from pyarrow import compute, types

    same_length = f"{path}: column {name!r} must hold lists of one and the same length"
    kind = column.type
    if not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        raise ValueError(f"{same_length}, it has {kind}")
    _check_whole(column, name, path)
    length_N = compute.list_value_length(column).to_numpy()
    other_N = length_N != length_N[:1]
    if other_N.any():
        row = int(other_N.argmax())
        raise ValueError(
            f"{same_length}: row 0 has {length_N[0]} numbers, row {row} has {length_N[row]}"
        )
    numbers = compute.list_flatten(column)
    if numbers.null_count:
        row, place = divmod(_first_null(numbers), int(length_N[0]))
        raise ValueError(f"{path}: row {row} has no number {place} in its {name}, it is null")
    rows = numbers.to_numpy().reshape(len(length_N), -1 if len(numbers) else 0)
    return np.require(rows, requirements=["C", "W"])  # torch has no read-only tensors


def as_labels(column: Any, name: str, path: Path) -> np.ndarray:
    """Integers (N,) of the column's own type, or Python's strings (numpy's lose a NUL at the end).

    Raises:
        ValueError: for items without a label, and for types that are no labels.
    """
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    _check_whole(column, name, path)
    if types.is_integer(column.type):
        return column.to_numpy()
    if str(column.type) in ("string", "large_string", "string_view"):
        return np.array(column.to_pylist(), dtype=object)
    raise ValueError(f"labels must be integers or strings, {path} has {column.type}")


def _check_whole(column: Any, name: str, path: Path) -> None:
    if column.null_count:
        others = column.null_count - 1
        more = f" (nor have {others} more)" if others else ""
        raise ValueError(
            f"{path}: row {_first_null(column)} has no {name}, it is null{more}: fill it in, or "
            "drop such items"
        )


def _first_null(column: Any) -> int:
    return int(column.is_null().to_numpy().argmax())

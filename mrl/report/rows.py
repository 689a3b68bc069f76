"""Read the rows that evaluations wrote: JSON lines, append-only, the latest row of a key wins."""

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mrl.command_line import override

# What a line must hold. One measured number: `value` is in per cent, `n` counts the images.
FIELDS: dict[str, type] = {
    "run": str,
    "experiment": str,
    "method": str,
    "seed": int,
    "commit": str,
    "dataset": str,
    "split": str,
    "evaluator": str,
    "metric": str,
    "granularity": int,
    "value": float,
    "n": int,
}
# What makes two rows the same measurement, done again.
KEY = [name for name in FIELDS if name not in ("value", "n", "commit")]
SOURCE = "source"
LARGEST = 2**63 - 1  # of whole numbers in a table


class RowsError(ValueError):
    """Rows that are missing or cannot be read; the message names file, line and cure."""


def read_rows(sources: Sequence[str | Path]) -> pd.DataFrame:
    """All rows under `sources` as one table with the columns of FIELDS and `source` (the file).

    Args:
        sources: run directories, directories of results (searched for rows*.jsonl) or .jsonl files.
            Where two files hold the same key, the file named later wins, and a warning says so.

    Raises:
        RowsError: nothing found, or a line is not a row (the message names file and line).
    """
    files = find_row_files(sources)
    records = [record for file in files for record in read_file(file)]
    if not records:
        raise RowsError(f"no rows in {_listing(files)}: the files are empty. Run eval.py again")
    rows = pd.DataFrame(records, columns=[*FIELDS, SOURCE])
    _warn_of_conflicts(rows)
    return rows.drop_duplicates(KEY, keep="last").reset_index(drop=True)


def find_row_files(sources: Sequence[str | Path]) -> list[Path]:
    """The row files under `sources`, each once, in the order named; RowsError if one has none."""
    found: dict[Path, Path] = {}
    for source in map(Path, sources):
        for file in _files_of(source):
            found.setdefault(file.resolve(), file)
    if not found:
        raise RowsError("no rows to report: name at least one run directory or .jsonl file")
    return list(found.values())


def read_file(path: Path) -> list[dict[str, object]]:
    """The rows of one file in order, blank lines skipped; RowsError names the first bad line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RowsError(f"cannot read {path}: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append({**parse_row(line), SOURCE: str(path)})
        except ValueError as error:
            raise RowsError(f"{path}, line {number}: {error}") from error
    return records


def parse_row(line: str) -> dict[str, object]:
    """One JSON line as a dict with exactly the keys of FIELDS; ValueError says what is wrong."""
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:  # brackets by the thousand
        raise ValueError(
            f"not JSON ({error}); a write that was cut short? {line[:60]!r}"
        ) from error
    if not isinstance(record, dict):
        raise ValueError(f"a row must be a JSON object, got {line[:60]!r}")
    missing = [name for name in FIELDS if name not in record]
    unknown = [name for name in record if name not in FIELDS]
    if missing or unknown:
        raise ValueError(f"not a row: missing {missing}, unknown {unknown}")
    return {name: _checked(name, record[name]) for name in FIELDS}


def _checked(name: str, value: object) -> object:
    kind = FIELDS[name]
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"{name} is out of range: it has {len(hex(value)) - 2} digits in base 16")
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}; rows hold finite numbers only")
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} must be {kind.__name__}, got {value!r}")
    if name in ("granularity", "n") and isinstance(value, int) and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def _files_of(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise RowsError(f"{source} does not exist: name a run directory or a .jsonl file")
    files = sorted(file for file in source.rglob("rows*.jsonl") if file.is_file())
    if not files:
        raise RowsError(
            f"no rows*.jsonl under {source}. A run gets its rows by "
            f"`python eval.py {override('run', source)}`; "
            "row files of another name have to be named one by one"
        )
    return files


def _warn_of_conflicts(rows: pd.DataFrame) -> None:
    """A re-evaluation within one file is normal; two files that disagree deserve a word."""
    same_key = rows[rows.duplicated(KEY, keep=False)]
    if same_key.empty:
        return
    groups = same_key.groupby(KEY)
    clash = (groups[SOURCE].nunique() > 1) & (groups["value"].nunique() > 1)
    if clash.any():
        files = _listing(sorted(same_key[SOURCE].unique()))
        warnings.warn(
            f"{int(clash.sum())} measurements stand in several files with different values "
            f"({files}); the file named last wins",
            stacklevel=3,
        )


def _listing(paths: Sequence[object], limit: int = 4) -> str:
    names = [str(path) for path in paths]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more

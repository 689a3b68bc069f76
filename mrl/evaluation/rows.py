"""Rows: one measured number each, as JSON lines that are only ever added to."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mrl.checkpoint import write_atomically

ROWS_NAME = "rows.jsonl"


@dataclass(slots=True, kw_only=True, frozen=True)
class Row:
    """Of rows that agree in all but ``value``, ``n`` and ``commit``, the latest counts."""

    run: str  # the last two folders of the run directory
    experiment: str
    method: str  # "MRL", "MRL-E" or "FF"
    seed: int
    commit: str  # of the code that trained the run
    dataset: str
    split: str  # "test" or "holdout"
    evaluator: str
    metric: str
    granularity: int
    value: float  # per cent
    n: int  # images that were judged


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add ``rows`` to the file at ``path``: all of them, or none if the disk is full."""
    before = path.read_text() if path.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"  # a foreign editor's last line must not swallow ours
    lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
    write_atomically(path, (before + lines).encode())


def as_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and body: a line for each granularity, a column for each evaluator's metric."""
    columns = list(dict.fromkeys((row.evaluator, row.metric) for row in rows))
    values = {(row.granularity, row.evaluator, row.metric): f"{row.value:.2f}" for row in rows}
    body = [
        [str(m), *(values.get((m, *column), "") for column in columns)]
        for m in sorted({row.granularity for row in rows})
    ]
    return ["granularity", *(" ".join(column) for column in columns)], body

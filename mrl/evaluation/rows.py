"""Rows: one measured number each, as JSON lines that are only ever added to."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mrl.files import alone, write_atomically
from mrl.row_names import MFLOPS, MILLISECONDS, parse_metric, plan_text, shown
from mrl.search.cost import Plan

ROWS_NAME = "rows.jsonl"
_MOST_LINES = 60  # of a printed table


@dataclass(slots=True, kw_only=True, frozen=True)
class Row:
    """Of rows that agree in all but ``value``, ``n`` and ``commit``, the latest counts."""

    run: str  # the last two folders of the run directory
    experiment: str
    method: str  # "MRL", "MRL-E" or "FF"; with ", float16" if embeddings were rounded to that
    seed: int
    commit: str  # of the code that trained the run
    dataset: str
    split: str  # "test" or "holdout"
    evaluator: str
    metric: str
    granularity: int
    value: float  # per cent, or in the unit that the metric names
    n: int  # images (or other items) that were judged


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add ``rows`` to the file at ``path``: all of them, or none if the disk is full."""
    with alone(path, wait=True):  # another process may be adding its own
        before = path.read_text() if path.exists() else ""
        if before and not before.endswith("\n"):
            before += "\n"  # a foreign editor's last line must not swallow ours
        lines = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        write_atomically(path, (before + lines).encode())


def as_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and body: a line for each granularity, a column for each evaluator's metric.

    Not in it: retrieval, which has a table of its own, and of a long list of widths those that were
    not trained.
    """
    rows = [row for row in rows if row.evaluator != "retrieval"]
    if len({row.granularity for row in rows}) > _MOST_LINES:
        rows = [row for row in rows if row.evaluator != "interpolation"]
    columns = list(dict.fromkeys((row.evaluator, row.metric) for row in rows))
    values = {
        (row.granularity, row.evaluator, row.metric): shown(row.metric, row.value) for row in rows
    }
    body = [
        [str(m), *(values.get((m, *column), "") for column in columns)]
        for m in sorted({row.granularity for row in rows})
    ]
    return ["granularity", *(" ".join(column) for column in columns)], body


def search_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and body of retrieval: a line for each plan, cheapest first, a column for each of the
    main quantities."""
    of_plan: dict[Plan, dict[str, float]] = {}
    for row in rows:
        if row.evaluator == "retrieval":
            quantity, plan = parse_metric(row.metric, row.granularity)
            of_plan.setdefault(plan, {})[quantity] = row.value
    found = list(dict.fromkeys(name for values in of_plan.values() for name in values))
    shortest = [name for name in found if name.startswith("mAP@") and "_" not in name][:1]
    columns = ["top1", *shortest, *(name for name in (MFLOPS, MILLISECONDS) if name in found)]
    body = [
        [
            plan_text(plan),
            "-".join(map(str, plan.shortlists)),
            *(shown(name, values[name]) for name in columns),
        ]
        for plan, values in sorted(of_plan.items(), key=lambda item: item[1][MFLOPS])
    ]
    return ["widths", "shortlists", *columns], body

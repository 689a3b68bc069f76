"""The evaluators by name, and the rows that they give."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mrl.evaluation import classify, interpolation, knn, retrieval, truncation
from mrl.evaluation.contract import Evaluator, Features, Score, WidthsOf
from mrl.evaluation.rows import Row, append_rows

if TYPE_CHECKING:
    from mrl.config import EvalsConfig

EVALUATORS = {
    "classify": Evaluator(classify.run, needs_bank=False, needs_head=True),
    "knn": Evaluator(knn.run, needs_classes=False),
    "interpolation": Evaluator(interpolation.run),
    "retrieval": Evaluator(retrieval.run, needs_classes=False),
    "truncation": Evaluator(truncation.run, needs_classes=False, needs_labels=False),
}


@dataclass(slots=True, frozen=True, kw_only=True)
class Judged:
    """What rows say of the model and the data; see :class:`Row`."""

    run: str
    experiment: str
    method: str
    seed: int
    commit: str
    dataset: str
    split: str


def names_asked(evals: "EvalsConfig") -> list[str]:
    """Names of the evaluators with a section, in the order of ``EVALUATORS``.

    Raises:
        ValueError: if there are none.
    """
    names = [name for name in EVALUATORS if getattr(evals, name) is not None]
    if not names:
        raise ValueError(f"no evaluator asked for: evals=[{','.join(EVALUATORS)}], or some of them")
    return names


def measure(
    names: Sequence[str],
    bank: Features | None,
    queries: Features,
    head: WidthsOf,
    evals: "EvalsConfig",
    judged: Judged,
    file: Path,
) -> list[Row]:
    """The rows of all scores of the evaluators ``names``.

    They are added to ``file`` evaluator by evaluator: what was measured stays if a later one fails.
    """
    rows = []
    for name in names:
        found = [_row(judged, name, score) for score in _scores(name, bank, queries, head, evals)]
        if not found and not evals.by_default:
            print(f"{name} has nothing to say at these widths: {head.granularities}")
        append_rows(file, found)
        rows += found
    return rows


def _scores(
    name: str, bank: Features | None, queries: Features, head: WidthsOf, evals: "EvalsConfig"
) -> Iterator[Score]:
    return EVALUATORS[name].run(bank, queries, head, getattr(evals, name))


def _row(judged: Judged, evaluator: str, score: Score) -> Row:
    return Row(
        run=judged.run,
        experiment=judged.experiment,
        method=judged.method,
        seed=judged.seed,
        commit=judged.commit,
        dataset=judged.dataset,
        split=judged.split,
        evaluator=evaluator,
        metric=score.metric,
        granularity=score.granularity,
        value=score.value,
        n=score.n,
    )

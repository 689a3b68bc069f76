"""Evaluation of a trained model: encode once, then one function for each protocol.

``contract.py`` says what an evaluator is and how to add one.
"""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mrl.distributed import process_group
from mrl.evaluation import classify, interpolation, knn
from mrl.evaluation.contract import Evaluator, Features, Score
from mrl.evaluation.rows import ROWS_NAME, Row, append_rows, as_table
from mrl.evaluation.sets import encode_bank, encode_queries, load_sets
from mrl.evaluation.subject import load_subject
from mrl.heads import method_name
from mrl.model import MRLModel

if TYPE_CHECKING:
    from mrl.config import EvalConfig, EvalsConfig

__all__ = ["EVALUATORS", "Evaluator", "Features", "Row", "Score", "as_table", "evaluate_run"]

EVALUATORS = {
    "classify": Evaluator(classify.run, needs_bank=False),
    "knn": Evaluator(knn.run, needs_classes=False),
    "interpolation": Evaluator(interpolation.run),
}


def evaluate_run(path: Path, cfg: "EvalConfig") -> list[Row]:
    """Judge the model at ``path`` by every evaluator in ``cfg.evals``; adds to its rows.jsonl.

    Unless ``cfg`` names others, the data are those of the checkpoint.  The bank of neighbours is
    the training part, without the held-out images and without augmentation.  Under torchrun the
    ranks share the encoding; rank 0 alone does the rest, and the others get no rows.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ValueError: for data that cannot be had, or settings that do not fit this model.
    """
    asked = _asked(cfg.evals)
    subject = load_subject(path, cfg)
    with process_group(cfg.device) as (ranks, device):
        sets = load_sets(
            subject,
            cfg,
            ranks,
            needs_bank=any(EVALUATORS[name].needs_bank for name in asked),
            needs_classes=any(EVALUATORS[name].needs_classes for name in asked),
        )
        queries = encode_queries(subject, sets, cfg, ranks, device)
        bank = encode_bank(subject, sets, cfg, ranks, device)
    # The other ranks have left: none could wait at a barrier for as long as k-NN may take.
    if not ranks.is_main:
        return []
    subject.model.to(device)
    queries, bank = queries.to(device), bank and bank.to(device)
    rows = [
        Row(
            run="/".join(subject.folder.resolve().parts[-2:]),
            experiment=subject.experiment,
            method=method_name(subject.model.head),
            seed=subject.seed,
            commit=subject.commit,
            dataset=sets.dataset,
            split=sets.split,
            evaluator=name,
            metric=score.metric,
            granularity=score.granularity,
            value=score.value,
            n=score.n,
        )
        for name in asked
        for score in _scores(name, bank, queries, subject.model, cfg.evals)
    ]
    append_rows(subject.folder / ROWS_NAME, rows)
    return rows


def _asked(evals: "EvalsConfig") -> list[str]:
    """Names of the evaluators with a section, in the order of ``EvalsConfig``."""
    names = [f.name for f in fields(evals) if getattr(evals, f.name) is not None]
    if not names:
        raise ValueError(f"no evaluator asked for: evals=[{','.join(EVALUATORS)}], or some of them")
    return names


def _scores(
    name: str, bank: Features | None, queries: Features, model: MRLModel, evals: "EvalsConfig"
) -> Iterator[Score]:
    return EVALUATORS[name].run(bank, queries, model.head, getattr(evals, name))

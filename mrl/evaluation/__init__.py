"""Evaluation of a trained model: encode once, then one function for each protocol.

``contract.py`` says what an evaluator is and how to add one.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from mrl.distributed import process_group
from mrl.evaluation.contract import Evaluator, Features, Score
from mrl.evaluation.embeddings import evaluate_embeddings
from mrl.evaluation.evaluators import EVALUATORS, Judged, measure, names_asked
from mrl.evaluation.rows import ROWS_NAME, Row, as_table, search_table
from mrl.evaluation.sets import encode_bank, encode_queries, load_sets
from mrl.evaluation.subject import load_subject
from mrl.heads import method_name

if TYPE_CHECKING:
    from mrl.config import EvalConfig

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "Features",
    "Row",
    "Score",
    "as_table",
    "evaluate_embeddings",
    "evaluate_run",
    "search_table",
]


def evaluate_run(path: Path, cfg: "EvalConfig") -> list[Row]:
    """Judge the model at ``path`` by every evaluator in ``cfg.evals``; adds to its rows.jsonl.

    Unless ``cfg`` names others, the data are those of the checkpoint.  The bank of neighbours is
    the training part, without the held-out images and without augmentation.  Under torchrun the
    ranks share the encoding; rank 0 alone does the rest, and the others get no rows.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ValueError: for data that cannot be had, or settings that do not fit this model.
    """
    asked = names_asked(cfg.evals)
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
    kept_as = cfg.feature_type.name
    judged = Judged(
        run="/".join(subject.folder.resolve().parts[-2:]),
        experiment=subject.experiment,
        method=method_name(subject.model.head) + (f", {kept_as}" if kept_as != "float32" else ""),
        seed=subject.seed,
        commit=subject.commit,
        dataset=sets.dataset,
        split=sets.split,
    )
    file = subject.folder / ROWS_NAME
    return measure(asked, bank, queries, subject.model.head, cfg.evals, judged, file)

"""Evaluation of a trained run: encode once, then one function for each protocol.

``contract.py`` says what an evaluator is and how to add one.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from mrl.checkpoint import config_of, load_checkpoint, model_of
from mrl.data import Splits, build_loader, load_splits
from mrl.distributed import pick_device
from mrl.evaluation import classify, interpolation, knn
from mrl.evaluation.contract import Evaluator, Features, Score
from mrl.evaluation.features import describe, extract
from mrl.evaluation.rows import ROWS_NAME, Row, append_rows, as_table
from mrl.heads import method_name
from mrl.model import MRLModel

if TYPE_CHECKING:
    from mrl.config import EvalConfig, EvalsConfig, TrainConfig

__all__ = ["EVALUATORS", "Evaluator", "Features", "Row", "Score", "as_table", "evaluate_run"]

EVALUATORS = {
    "classify": Evaluator(classify.run, needs_bank=False),
    "knn": Evaluator(knn.run),
    "interpolation": Evaluator(interpolation.run),
}


def evaluate_run(run_dir: Path, cfg: "EvalConfig") -> list[Row]:
    """Judge the model in ``run_dir`` by every evaluator in ``cfg.evals``; adds to its rows.jsonl.

    The model, the data and the training seed are those that its checkpoint names.  The bank of
    neighbours is the training part, without the held-out images and without augmentation.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ValueError: for data that cannot be had, or settings that do not fit this model.
    """
    state = load_checkpoint(run_dir)
    train_cfg, model = config_of(state), model_of(state)
    if cfg.data_root is not None:
        train_cfg.data.root = cfg.data_root
    asked = _asked(cfg.evals)
    encode = _Encoder(run_dir, model, train_cfg, cfg)
    queries = encode(cfg.split.name)
    bank = encode("train") if any(EVALUATORS[name].needs_bank for name in asked) else None
    rows = [
        Row(
            run="/".join(run_dir.resolve().parts[-2:]),
            experiment=train_cfg.name,
            method=method_name(model.head),
            seed=train_cfg.seed,
            commit=_commit(run_dir),
            dataset=train_cfg.data.name.name,
            split=cfg.split.name,
            evaluator=name,
            metric=score.metric,
            granularity=score.granularity,
            value=score.value,
            n=score.n,
        )
        for name in asked
        for score in _scores(name, bank, queries, model, cfg.evals)
    ]
    append_rows(run_dir / ROWS_NAME, rows)
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


def _commit(run_dir: Path) -> str:
    """Of the code that trained the run, as it noted in env.json."""
    try:
        return str(json.loads((run_dir / "env.json").read_text())["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


class _Encoder:
    """``encode(split)``: the features of a split of the run's own data, on the device."""

    def __init__(
        self, run_dir: Path, model: MRLModel, train_cfg: "TrainConfig", cfg: "EvalConfig"
    ) -> None:
        self.folder = run_dir / "features"
        self.data, self.cfg = train_cfg.data, cfg
        self.device = pick_device(cfg.device)
        self.model = model.to(self.device)
        self.splits: Splits = load_splits(train_cfg.data)

    def __call__(self, split: str) -> Features:
        dataset = getattr(self.splits, split)
        mean, std = self.splits.mean, self.splits.std
        loader = build_loader(
            dataset,
            cfg=self.data,
            mean=mean,
            std=std,
            batch_size=self.cfg.batch_size,
            train=False,
            seed=0,
        )
        transform = {"image_size": self.data.image_size, "mean": list(mean), "std": list(std)}
        manifest = describe(
            self.model, dataset, name=self.data.name.name, split=split, transform=transform
        )
        found = extract(self.model, loader, manifest, self.folder, device=self.device)
        return found.to(self.device)

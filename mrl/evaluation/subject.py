"""The model under judgement: out of a run, or out of a checkpoint that may be the authors'."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mrl.checkpoint import CheckpointError, config_of, load_checkpoint, load_model, model_of
from mrl.data.datasets import SOURCES
from mrl.model import MRLModel

if TYPE_CHECKING:
    from mrl.config import DataConfig, EvalConfig


@dataclass(kw_only=True, slots=True)
class Subject:
    """A model, what its rows call it, and the data set that it is judged on."""

    model: MRLModel
    folder: Path  # of its rows and embeddings
    experiment: str
    seed: int
    commit: str  # of the code that trained it
    data: "DataConfig"
    dataset: str  # what rows call that data set
    mean: tuple[float, ...]  # of each channel, with which the model was trained
    std: tuple[float, ...]
    classes: list[str] | None  # of its head; None: not known


def load_subject(path: Path, cfg: "EvalConfig") -> Subject:
    """The model at ``path``: a run directory, a checkpoint, or one of the authors' files.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ValueError: if the data set is neither in the checkpoint nor in ``cfg``.
    """
    try:
        state = load_checkpoint(path)
    except CheckpointError:
        return _foreign(path, load_model(path), cfg)
    trained = config_of(state)
    own = trained.data if cfg.data_root is None else replace(trained.data, root=cfg.data_root)
    source = SOURCES[own.name.name]
    run_dir = path if path.is_dir() else path.parent
    return Subject(
        model=model_of(state),
        folder=Path(cfg.out or run_dir),
        experiment=trained.name,
        seed=trained.seed,
        commit=_commit(run_dir),
        data=cfg.data or own,
        dataset=own.name.name if cfg.data is None else dataset_name(cfg.data),
        mean=source.mean,
        std=source.std,
        classes=state["data"]["classes"],
    )


def _foreign(path: Path, model: MRLModel, cfg: "EvalConfig") -> Subject:
    """A file with weights alone: its data set, statistics and classes come from elsewhere."""
    if cfg.data is None:
        raise ValueError(
            f"{path} does not say what data it was trained on: give data=imagefolder "
            "data.root=FOLDER (ImageNet's, with train/ and val/; for queries=... with "
            "'evals=[classify]' the folder need not be there)"
        )
    source = SOURCES[cfg.data.name.name]
    num_classes = model.head.num_classes
    return Subject(
        model=model,
        folder=Path(cfg.out or path.parent),
        experiment=path.stem,
        seed=0,
        commit="unknown",
        data=cfg.data,
        dataset=dataset_name(cfg.data),
        mean=source.mean,
        std=source.std,
        classes=imagenet_1k() if num_classes == 1000 else None,
    )


def imagenet_1k() -> list[str]:
    """The WordNet ids of ImageNet-1K's classes, in the order of their labels."""
    from timm.data import ImageNetInfo

    return ImageNetInfo("imagenet-1k").label_names()


def dataset_name(data: "DataConfig") -> str:
    """As rows call a data set that is not the run's own: folders of pictures by their name, too."""
    name = data.name.name
    return f"{name}:{Path(data.root).name}" if name == "imagefolder" else name


def _commit(run_dir: Path) -> str:
    """Of the code that trained the run, as it noted in env.json."""
    try:
        return str(json.loads((run_dir / "env.json").read_text())["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"

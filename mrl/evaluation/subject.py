"""The model under judgement: out of a run, or out of a checkpoint that may be the authors'."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrl.checkpoint import CheckpointError, config_of, load_checkpoint, model_of
from mrl.data import Pixels
from mrl.data.datasets import noted_pixels
from mrl.export import read_source
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
    pixels: Pixels  # as its weights were trained
    classes: list[str] | None  # of its head; None: not known
    noted: Mapping[str, Any] | None  # what the run noted of ``data``; None: that is other data


def load_subject(path: Path, cfg: "EvalConfig") -> Subject:
    """The model at ``path``: a run directory, a checkpoint, or one of the authors' files.

    Raises:
        CheckpointError: if there is no usable checkpoint.
        ValueError: if the data set is neither in the checkpoint nor in ``cfg``.
    """
    try:
        state = load_checkpoint(path)
    except CheckpointError:
        return _foreign(path, cfg)
    trained = config_of(state)
    own = trained.data if cfg.data_root is None else replace(trained.data, root=cfg.data_root)
    run_dir = path if path.is_dir() else path.parent
    return Subject(
        model=model_of(state),
        folder=Path(cfg.out or run_dir),
        experiment=trained.name,
        seed=trained.seed,
        commit=_commit(run_dir),
        data=cfg.data or own,
        dataset=own.name.name if cfg.data is None else dataset_name(cfg.data),
        pixels=_overridden(noted_pixels(state["data"], own), cfg),
        classes=state["data"]["classes"],
        noted=state["data"] if cfg.data is None else None,
    )


def _foreign(path: Path, cfg: "EvalConfig") -> Subject:
    """An export or one of the authors' files: the data set comes from elsewhere."""
    source = read_source(path)
    if cfg.data is None:
        raise ValueError(
            f"{path} does not say what data it was trained on: give data=imagefolder "
            "data.root=FOLDER (ImageNet's, with train/ and val/; for queries=... with "
            "'evals=[classify]' the folder need not be there)"
        )
    classes = source.classes
    if classes is None and source.model.head.num_classes == 1000:
        classes = imagenet_1k()
    return Subject(
        model=source.model,
        folder=Path(cfg.out or path.parent),
        experiment=path.stem,
        seed=0,
        commit="unknown",
        data=cfg.data,
        dataset=dataset_name(cfg.data),
        pixels=_overridden(source.pixels, cfg),
        classes=classes,
        noted=None,
    )


def _overridden(pixels: Pixels, cfg: "EvalConfig") -> Pixels:
    return pixels if cfg.data is None else pixels.overridden(cfg.data)


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

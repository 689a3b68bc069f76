"""The images that a model is judged on, and those that its neighbours are sought among."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from mrl.data import ImageDataset, Loader, Splits, build_loader, load_splits
from mrl.data_notes import changes, notes_of
from mrl.distributed import Ranks, from_rank_0, gather_objects
from mrl.evaluation.class_matching import ClassMatch, match_classes, read_classes_map
from mrl.evaluation.contract import Features
from mrl.evaluation.features import extract
from mrl.evaluation.manifest import describe
from mrl.evaluation.queries import load_queries
from mrl.evaluation.subject import Subject

if TYPE_CHECKING:
    from mrl.config import DataConfig, EvalConfig


@dataclass(kw_only=True, slots=True)
class Sets:
    """``queries`` are judged; ``in_head`` and ``in_bank``: see :class:`Features`."""

    queries: ImageDataset
    dataset: str  # as rows call that of the queries
    split: str
    bank: ImageDataset | None
    in_head: ClassMatch | None = None
    in_bank: ClassMatch | None = None


def load_sets(
    subject: Subject, cfg: "EvalConfig", ranks: Ranks, *, needs_bank: bool, needs_classes: bool
) -> Sets:
    """Find the images and what their class folders mean, before anything is encoded.

    Raises:
        ValueError: for data that cannot be had or are not like those of the model, and for class
            folders that are none of its classes.
    """
    with _rank_0_first(ranks):
        needed = needs_bank or cfg.queries is None
        splits = load_splits(subject.data, subject.noted) if needed else None
    if splits is not None and ranks.is_main:
        _say_changes(subject, splits)
    classes_map = None
    if cfg.queries is not None:
        if cfg.queries.classes_map is not None:
            classes_map = read_classes_map(cfg.queries.classes_map)
        queries = load_queries(cfg.queries.root, classes_map)
        name, split = cfg.queries.name, "test"
    else:
        assert splits is not None
        queries = getattr(splits, cfg.split.name)
        name, split = subject.dataset, cfg.split.name
    channels = 3 if splits is None else splits.in_channels
    if channels != len(subject.pixels.mean):
        raise ValueError(
            f"the model takes {len(subject.pixels.mean)} channels, the images have {channels}"
        )
    if not len(queries):
        raise ValueError(f"split={split} has no images (of holdout: data.holdout is 0)")
    bank = splits.train if splits and needs_bank else None
    sets = Sets(queries=queries, dataset=name, split=split, bank=bank)
    if needs_classes:
        classes = _head_classes(subject, splits)
        try:
            sets.in_head = match_classes(queries.classes, classes, classes_map)
        except ValueError as error:
            raise ValueError(
                f"the linear classifiers: {error}. 'evals=[knn]' does without them"
            ) from error
    if sets.bank is not None:
        sets.in_bank = match_classes(queries.classes, sets.bank.classes, classes_map)
    return sets


def _say_changes(subject: Subject, splits: Splits) -> None:
    """Warn where the data are not those that the run was trained on."""
    if subject.noted is None:
        return
    for change in changes(subject.noted, notes_of(splits, subject.pixels), splits.lost):
        print(f"warning: since the run began its data have changed: {change}")


def _head_classes(subject: Subject, splits: Splits | None) -> list[str]:
    """The model's own class list, or for a file that has none that of a data set of its size."""
    if subject.classes is not None:
        return subject.classes
    count = subject.model.head.num_classes
    if splits is None or len(splits.classes) != count:
        has = "was not needed" if splits is None else f"has {len(splits.classes)} classes"
        raise ValueError(
            f"the checkpoint does not name its {count} classes, and the data set {has}: give the "
            "one that it was trained on as data=..., or only 'evals=[knn]'"
        )
    return splits.classes


def encode_queries(
    subject: Subject, sets: Sets, cfg: "EvalConfig", ranks: Ranks, device: torch.device
) -> Features:
    """The features of the judged images, with what their labels mean."""
    data = subject.data
    if cfg.queries is not None:  # image files, whatever the training images come from
        data = replace(data, loader=type(data.loader).torch)
    name, split = sets.dataset, sets.split
    found = _encode(sets.queries, subject, data, name, split, cfg, ranks, device)
    return replace(found, in_head=sets.in_head, in_bank=sets.in_bank)


def encode_bank(
    subject: Subject, sets: Sets, cfg: "EvalConfig", ranks: Ranks, device: torch.device
) -> Features | None:
    """The features of the training part, None if no evaluator asked for needs it."""
    if sets.bank is None:
        return None
    name = subject.dataset
    return _encode(sets.bank, subject, subject.data, name, "train", cfg, ranks, device)


def _encode(
    dataset: ImageDataset,
    subject: Subject,
    data: "DataConfig",
    name: str,
    split: str,
    cfg: "EvalConfig",
    ranks: Ranks,
    device: torch.device,
) -> Features:
    may_skip = data.on_corrupt.name == "skip"
    pixels = subject.pixels
    transform = {"image_size": data.image_size, **pixels.to_dict()}
    if data.loader.name != "torch":
        transform["loader"] = data.loader.name
    if may_skip:
        transform["on_corrupt"] = data.on_corrupt.name

    def load(rows: range, batch_size: int) -> Loader:
        part = dataset if len(rows) == len(dataset) else dataset.subset(torch.tensor(rows))
        return build_loader(
            part, cfg=data, pixels=pixels, batch_size=batch_size, train=False, seed=0
        )

    def described() -> dict[str, Any]:
        return describe(
            subject.model,
            dataset,
            name=name,
            split=split,
            transform=transform,
            feature_type=cfg.feature_type.name,
        )

    return extract(
        subject.model,
        load,
        from_rank_0(described, ranks),
        subject.folder / "features",
        batch_size=cfg.batch_size,
        device=device,
        ranks=ranks,
        may_skip=may_skip,
    )


@contextmanager
def _rank_0_first(ranks: Ranks) -> Iterator[None]:
    """Files that have to be fetched are fetched once."""
    if not ranks.is_main:
        gather_objects(None)
    yield
    if ranks.is_main:
        gather_objects(None)

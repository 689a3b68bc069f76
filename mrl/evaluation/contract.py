"""What evaluators are given and what they give.

An evaluator is a function ``(bank, queries, head, cfg) -> Iterator[Score]``: the features of the
training part and of the judged split, the trained head (its ``granularities`` say which widths were
trained), and its own section of the config.  A new one is one file with such a function, an entry
in ``EVALUATORS``, a dataclass in ``mrl/config.py`` and a file in ``configs/evals/``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mrl.evaluation.class_matching import ClassMatch
from mrl.heads import NestedHead, TiedHead

UNLABELLED = -1  # label of every item of a set that came without labels


@dataclass(slots=True, frozen=True)
class Widths:
    """In place of a head, for embeddings that come without a model: the widths to judge."""

    embed_dim: int
    granularities: list[int]


Head = NestedHead | TiedHead
WidthsOf = Head | Widths  # what evaluators take that read nothing but the widths


@dataclass(slots=True, frozen=True)
class Features:
    """Embeddings ``z`` (N, D), float32 or float16, and ``labels`` (N,) int64 of the same images.

    Embeddings that were made elsewhere keep their type (float16, float32 or float64) and may be
    ``UNLABELLED``.

    ``in_head`` and ``in_bank`` say what the labels mean among the classes of the head and of the
    bank; None: they are places in that list of classes.  ``ids`` (N,) int64 of queries that are
    items of the bank themselves are their places in it: there none is its own neighbour.
    """

    z: Tensor
    labels: Tensor
    in_head: ClassMatch | None = None
    in_bank: ClassMatch | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        if self.z.ndim != 2 or self.labels.shape != self.z.shape[:1]:
            raise ValueError(
                f"features need embeddings (N, D) and labels (N,), got {tuple(self.z.shape)} "
                f"and {tuple(self.labels.shape)}"
            )
        if self.labels.dtype != torch.int64:
            raise TypeError(
                f"labels must be int64 (others cannot hold them), got {self.labels.dtype}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        return bool((self.labels != UNLABELLED).any())

    def to(self, device: torch.device) -> "Features":
        ids = None if self.ids is None else self.ids.to(device)
        return Features(
            self.z.to(device),
            self.labels.to(device),
            self.in_head and self.in_head.to(device),
            self.in_bank and self.in_bank.to(device),
            ids,
        )


@dataclass(slots=True, frozen=True)
class Score:
    """One number over ``n`` images, at one prefix width: ``value`` is in per cent, or in the unit
    that the metric names (see :mod:`mrl.row_names`)."""

    metric: str
    granularity: int
    value: float
    n: int


@dataclass(slots=True, frozen=True)
class Evaluator:
    """``run(bank, queries, head, cfg)``; ``bank`` is None where ``needs_bank`` is false.

    ``needs_classes``: it reads logits where there are some, so the queries' labels must be classes
    of the head.  ``needs_head`` and ``needs_labels``: it has nothing to say without.
    """

    run: Callable[[Any, Features, Any, Any], Iterator[Score]]
    needs_bank: bool = True
    needs_classes: bool = True
    needs_head: bool = False
    needs_labels: bool = True


def per_cent(correct: Tensor) -> float:
    """Of a boolean tensor, how much is true."""
    return 100.0 * int(correct.sum()) / correct.numel()

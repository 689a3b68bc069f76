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

Head = NestedHead | TiedHead


@dataclass(slots=True, frozen=True)
class Features:
    """Embeddings ``z`` (N, D) float32 and ``labels`` (N,) int64 of the same images.

    ``in_head`` and ``in_bank`` say what the labels mean among the classes of the head and of the
    bank; None: they are places in that list of classes.
    """

    z: Tensor
    labels: Tensor
    in_head: ClassMatch | None = None
    in_bank: ClassMatch | None = None

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

    def to(self, device: torch.device) -> "Features":
        matches = (m and m.to(device) for m in (self.in_head, self.in_bank))
        return Features(self.z.to(device), self.labels.to(device), *matches)


@dataclass(slots=True, frozen=True)
class Score:
    """One number: ``value`` in per cent over ``n`` images, at one prefix width."""

    metric: str
    granularity: int
    value: float
    n: int


@dataclass(slots=True, frozen=True)
class Evaluator:
    """``run(bank, queries, head, cfg)``; ``bank`` is None where ``needs_bank`` is false.

    ``needs_classes``: it reads logits, so the queries' labels must be classes of the head.
    """

    run: Callable[[Any, Features, Head, Any], Iterator[Score]]
    needs_bank: bool = True
    needs_classes: bool = True


def per_cent(correct: Tensor) -> float:
    """Of a boolean tensor, how much is true."""
    return 100.0 * int(correct.sum()) / correct.numel()

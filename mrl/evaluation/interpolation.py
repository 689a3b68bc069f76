"""Widths that were not trained, in between those that were (paper, section 4.4).

Shapes: N images, D embedding width.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING

from mrl.evaluation.classify import top1
from mrl.evaluation.contract import Features, Head, Score
from mrl.evaluation.knn import knn_scores
from mrl.heads import TiedHead

if TYPE_CHECKING:
    from mrl.config import InterpolationConfig


def run(
    bank: Features, queries: Features, head: Head, cfg: "InterpolationConfig"
) -> Iterator[Score]:
    """1-NN (``top1_k1``) at untrained widths and, for MRL-E, the linear head there (``top1``).

    MRL has no classifier at such widths; MRL-E's is the column slice of its one weight.  A model
    trained at one width (FF) has nothing in between and yields nothing.
    """
    widths = untrained_widths(head.granularities, head.embed_dim, cfg.widths)
    if not widths:
        return
    if isinstance(head, TiedHead):
        linear = top1(lambda z: {m: head.logits_at(z, m) for m in widths}, queries)
        for m, value in linear.items():
            yield Score("top1", m, value, len(queries))
    yield from knn_scores(bank, queries, widths, [1])


def midpoints(granularities: Sequence[int]) -> list[int]:
    """Midway on a log scale between neighbours, rounded: [2, 4, 8] -> [3, 6]."""
    middle = (round(sqrt(a * b)) for a, b in pairwise(granularities))
    return [m for m in middle if m not in granularities]


def untrained_widths(
    granularities: Sequence[int], embed_dim: int, asked: Sequence[int] | None
) -> list[int]:
    """The widths to evaluate, ascending: those ``asked`` for that were not trained, or midpoints.

    Raises:
        ValueError: for a width below the smallest granularity or above the embedding width.
    """
    if len(granularities) == 1:
        return []
    if asked is None:
        return midpoints(granularities)
    outside = [m for m in asked if not granularities[0] <= m <= embed_dim]
    if outside:
        raise ValueError(
            f"evals.interpolation.widths={list(asked)}: {outside} lie outside "
            f"{granularities[0]}..{embed_dim} (the smallest granularity and the embedding width)"
        )
    return sorted(set(asked) - set(granularities))

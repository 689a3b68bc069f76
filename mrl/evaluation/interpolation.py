"""Widths that were not trained, in between those that were (paper, section 4.4).

Shapes: N images, C classes, D embedding width, M prefix width.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt
from typing import TYPE_CHECKING

from torch import Tensor

from mrl.evaluation.classify import top1
from mrl.evaluation.contract import Features, Score, WidthsOf
from mrl.evaluation.knn import knn_scores
from mrl.heads import TiedHead

if TYPE_CHECKING:
    from mrl.config import InterpolationConfig


def run(
    bank: Features, queries: Features, head: WidthsOf, cfg: "InterpolationConfig"
) -> Iterator[Score]:
    """1-NN (``top1_k1``) at untrained widths and, for MRL-E, the linear head there (``top1``).

    MRL has no classifier at such widths; MRL-E's is the column slice of its one weight.  A model
    trained at one width (FF) has nothing in between and yields nothing.
    """
    widths = untrained_widths(head.granularities, head.embed_dim, cfg.widths)
    if not widths:
        return
    if isinstance(head, TiedHead):
        linear = top1(lambda z: running_logits(head, z, widths), queries)
        for m, value in linear.items():
            yield Score("top1", m, value, len(queries))
    yield from knn_scores(bank, queries, widths, [1])


def running_logits(
    head: TiedHead, z_ND: Tensor, widths: Sequence[int]
) -> Iterator[tuple[int, Tensor]]:
    """Width and logits (N, C) of MRL-E at ascending ``widths``: each adds its columns to the last.

    All widths up to D cost one product of width D.  The tensor is the same one each time.
    """
    logits_NC = z_ND.new_zeros(len(z_ND), head.num_classes)
    if head.bias is not None:
        logits_NC += head.bias
    for lo, hi in pairwise([0, *widths]):
        logits_NC.addmm_(z_ND[:, lo:hi], head.weight[:, lo:hi].T)
        yield hi, logits_NC


def midpoints(granularities: Sequence[int]) -> list[int]:
    """Midway on a log scale between neighbours, rounded: [2, 4, 8] -> [3, 6]."""
    middle = (round(sqrt(a * b)) for a, b in pairwise(granularities))
    return [m for m in middle if m not in granularities]


def untrained_widths(
    granularities: Sequence[int], embed_dim: int, asked: Sequence[int] | str | None
) -> list[int]:
    """The widths to evaluate, ascending: those ``asked`` for that were not trained, or midpoints.

    "all" is every width from 1 to ``embed_dim``, with the trained ones: a whole curve.

    Raises:
        ValueError: for a width below the smallest granularity or above the embedding width.
    """
    if len(granularities) == 1:
        return []
    if asked is None:
        return midpoints(granularities)
    if isinstance(asked, str):
        return list(range(1, embed_dim + 1))
    outside = [m for m in asked if not granularities[0] <= m <= embed_dim]
    if outside:
        raise ValueError(
            f"evals.interpolation.widths={list(asked)}: {outside} lie outside "
            f"{granularities[0]}..{embed_dim} (the smallest granularity and the embedding width)"
        )
    return sorted(set(asked) - set(granularities))

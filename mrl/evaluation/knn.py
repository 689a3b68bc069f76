"""k-NN classification on nested prefixes: cosine, exact, majority vote.

Shapes: B bank, Q queries, D embedding width, G granularities, K neighbours.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrl.evaluation.class_matching import is_right
from mrl.evaluation.contract import Features, Score, WidthsOf, per_cent
from mrl.evaluation.neighbours import neighbours, num_others, usual

if TYPE_CHECKING:
    from mrl.config import KnnConfig

_USUAL_KS = (1, 5)
_VOTE_BYTES = 64 * 2**20


def run(bank: Features, queries: Features, head: WidthsOf, cfg: "KnnConfig") -> Iterator[Score]:
    """``top1_k1``, ``top1_k5``, ...: for every ``cfg.k``, at every granularity of the head."""
    ks = cfg.k
    if ks is None:
        most = usual("knn", _USUAL_KS[-1], bank, queries)
        ks = [k for k in _USUAL_KS if k <= most]
    yield from knn_scores(bank, queries, head.granularities, ks)


def knn_scores(
    bank: Features, queries: Features, widths: Sequence[int], ks: Sequence[int]
) -> Iterator[Score]:
    """Accuracy of k-NN for all ``ks`` at all ``widths``, from one search of the whole bank.

    Raises:
        ValueError: if a k is below 1, above the size of the bank, or given twice.
    """
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ValueError(f"evals.knn.k must be different positive numbers, got {list(ks)}")
    most = num_others(bank, queries)
    if max(ks) > most:
        raise ValueError(f"evals.knn.k={max(ks)} is more than the {most} neighbours there are")
    indices_GQK = neighbours(bank, queries, widths, max(ks))
    for m, indices_QK in zip(widths, indices_GQK, strict=True):
        labels_QK = bank.labels[indices_QK]
        for k in ks:
            vote_Q = majority_vote(labels_QK[:, :k])
            correct_Q = is_right(vote_Q, queries.labels, queries.in_bank)
            yield Score(f"top1_k{k}", m, per_cent(correct_Q), len(queries))


def majority_vote(labels_QK: Tensor) -> Tensor:
    """The commonest label of each row (Q,); of those equally common, the nearest neighbour's.

    Args:
        labels_QK: labels of the neighbours, nearest first; any integers.
    """
    k = labels_QK.shape[1]
    winners = []
    for labels in labels_QK.split(max(1, _VOTE_BYTES // (k * k))):
        votes = (labels[:, :, None] == labels[:, None, :]).sum(2)  # for each neighbour's own label
        first = votes.argmax(1, keepdim=True)  # the first of several maxima, as torch documents
        winners.append(labels.gather(1, first).squeeze(1))
    return torch.cat(winners)

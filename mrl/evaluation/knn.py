"""k-NN classification on nested prefixes: cosine, exact, majority vote.

Shapes: B bank, Q queries, D embedding width, G granularities, K neighbours.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrl.evaluation.class_matching import is_right
from mrl.evaluation.contract import Features, Head, Score, per_cent
from mrl.search import nested_knn

if TYPE_CHECKING:
    from mrl.config import KnnConfig

_VOTE_BYTES = 64 * 2**20


def run(bank: Features, queries: Features, head: Head, cfg: "KnnConfig") -> Iterator[Score]:
    """``top1_k1``, ``top1_k5``, ...: for every ``cfg.k``, at every granularity of the head."""
    yield from knn_scores(bank, queries, head.granularities, cfg.k)


def knn_scores(
    bank: Features, queries: Features, widths: Sequence[int], ks: Sequence[int]
) -> Iterator[Score]:
    """Accuracy of k-NN for all ``ks`` at all ``widths``, from one search of the whole bank.

    A prefix of zeros (ReLU features have them at small widths) has cosine 0 to everything.

    Raises:
        ValueError: if a k is below 1, above the size of the bank, or given twice.
    """
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ValueError(f"evals.knn.k must be different positive numbers, got {list(ks)}")
    if max(ks) > len(bank):
        raise ValueError(f"evals.knn.k={max(ks)} is more than the {len(bank)} images of the bank")
    _warn_of_zeros(queries, widths[0])
    _, indices = nested_knn(
        bank.z, queries.z, widths, max(ks), "cosine", allow_zero=True, progress=True
    )
    for m, indices_QK in zip(widths, indices, strict=True):
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


def _warn_of_zeros(queries: Features, m: int) -> None:
    count = int((queries.z[:, :m] == 0).all(1).sum())
    if count:
        warnings.warn(
            f"{count} of {len(queries)} embeddings are zero in their first {m} entries: their "
            "cosine counts as 0 to every image, so their neighbours there mean nothing",
            stacklevel=3,
        )

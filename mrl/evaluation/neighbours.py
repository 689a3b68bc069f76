"""The nearest neighbours of queries, without the queries themselves where they are in the bank.

Shapes: B bank, Q queries, D embedding width, G granularities, K neighbours.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from mrl.evaluation.contract import Features
from mrl.search import nested_knn


def neighbours(bank: Features, queries: Features, widths: Sequence[int], k: int) -> Tensor:
    """Places in the bank (G, Q, K) of the nearest by cosine, best first, at every width.

    A prefix of zeros (ReLU features have them at small widths) has cosine 0 to everything.

    Args:
        k: at most :func:`num_others`.
    """
    _warn_of_zeros(queries, widths[0])
    spare = queries.ids is not None
    _, indices_GQK = nested_knn(
        bank.z, queries.z, widths, k + spare, "cosine", allow_zero=True, progress=True
    )
    return indices_GQK if queries.ids is None else _without_self(indices_GQK, queries.ids)


def num_others(bank: Features, queries: Features) -> int:
    """How many items of the bank a query can have as neighbours."""
    return len(bank) - (queries.ids is not None)


def usual(evaluator: str, k: int, bank: Features, queries: Features) -> int:
    """``k``, which nobody asked for, or as many neighbours as there are; then it says so."""
    most = num_others(bank, queries)
    if most < k:
        print(f"{evaluator} looks at {most} neighbours, not {k}: there are no more")
    return min(k, most)


def _without_self(indices_GQK: Tensor, ids_Q: Tensor) -> Tensor:
    """One column less: each query's own place is taken out, or else the last place.

    (A query with many twins may not be among its own nearest: of equals the lower index wins.)
    """
    own_GQK = indices_GQK == ids_Q[:, None]
    last = indices_GQK.shape[-1] - 1
    place_GQ = torch.where(own_GQK.any(-1), own_GQK.int().argmax(-1), last)
    columns_K = torch.arange(last, device=indices_GQK.device)
    return indices_GQK.gather(-1, columns_K + (columns_K >= place_GQ[..., None]))


def _warn_of_zeros(queries: Features, m: int) -> None:
    count = int((queries.z[:, :m] == 0).all(1).sum())
    if count:
        warnings.warn(
            f"{count} of {len(queries)} embeddings are zero in their first {m} entries: their "
            "cosine counts as 0 to everything, so their neighbours there mean nothing",
            stacklevel=4,
        )

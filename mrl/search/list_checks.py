"""Input checks of the metrics, with errors that say which query or item is at fault.

Shapes: Q queries, B bank, K neighbours per query.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CHUNK = 2**20  # entries of the lists that are sorted in one go


def check_lists(indices: Any, query_labels: Any, bank_labels: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The three as int64 tensors on the device of ``indices``, if they belong together."""
    found_QK = as_integers("indices", indices, 2)
    labels_Q = as_integers("query_labels", query_labels, 1).to(found_QK.device)
    labels_B = as_integers("bank_labels", bank_labels, 1).to(found_QK.device)
    if 0 in found_QK.shape or len(labels_B) == 0:
        raise ValueError(
            f"metrics need a query, a neighbour and an item in the bank, got indices "
            f"{tuple(found_QK.shape)} and {len(labels_B)} bank_labels"
        )
    if len(labels_Q) != len(found_QK):
        raise ValueError(f"{len(labels_Q)} query_labels for {len(found_QK)} lists of neighbours")
    lowest, highest = (int(place) for place in found_QK.aminmax())
    if lowest < -1 or highest >= len(labels_B):
        wrong = lowest if lowest < -1 else highest
        raise ValueError(
            f"query {_first_row(found_QK == wrong)} has neighbour {wrong}, but bank_labels are "
            f"those of items 0..{len(labels_B) - 1}"
        )
    return found_QK, labels_Q, labels_B


def as_integers(name: str, values: Any, ndim: int) -> Tensor:
    """``values`` as an int64 tensor: half of the integers above 2048 do not exist in float16.

    Numbers above int64's, which it would turn into negative ones, are refused.
    """
    if values is None:
        raise ValueError(f"{name} are missing: these metrics need them for every query and item")
    unsigned = isinstance(values, Tensor) and values.dtype == torch.uint64
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, got {array.dtype}")
        unsigned = array.dtype.kind == "u"
        # Torch wants arrays that it may write to and that run forwards.
        values = torch.from_numpy(np.require(array, np.int64, ["C", "W"]))
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    if values.ndim != ndim:
        wanted = "(queries, neighbours)" if ndim == 2 else "one for each"
        raise ValueError(f"{name} must be {wanted}, got shape {tuple(values.shape)}")
    integers = values.long()
    if unsigned and bool((integers < 0).any()):
        raise ValueError(f"{name} must be at most {2**63 - 1}, as int64 holds them: renumber them")
    return integers


def check_ks(ks: Sequence[int]) -> list[int]:
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ValueError(f"ks must be different positive numbers, got {list(ks)}")
    return list(ks)


def check_ids(ids_Q: Tensor, labels_Q: Tensor, labels_B: Tensor) -> None:
    if len(ids_Q) != len(labels_Q):
        raise ValueError(f"{len(ids_Q)} query_ids for {len(labels_Q)} queries")
    outside_Q = (ids_Q < -1) | (ids_Q >= len(labels_B))
    if bool(outside_Q.any()):
        q = _first_row(outside_Q)
        raise ValueError(
            f"query_ids[{q}]={int(ids_Q[q])} is no item of the bank: give 0..{len(labels_B) - 1}, "
            "or -1 for a query that is not in it"
        )
    differ_Q = (labels_B[ids_Q.clamp(min=0)] != labels_Q) & (ids_Q >= 0)
    if bool(differ_Q.any()):
        q = _first_row(differ_Q)
        raise ValueError(
            f"query {q} is item {int(ids_Q[q])} of the bank (query_ids), but their labels differ: "
            f"{int(labels_Q[q])} and {int(labels_B[ids_Q[q]])}"
        )


def check_distinct(found_QK: Tensor) -> None:
    """An item twice in a list would count twice, up to a recall above 1."""
    first = 0
    for block_QK in found_QK.split(max(1, _CHUNK // found_QK.shape[1])):
        sorted_QK = block_QK.sort(dim=1).values
        twice_QK = (sorted_QK[:, 1:] == sorted_QK[:, :-1]) & (sorted_QK[:, 1:] >= 0)
        if bool(twice_QK.any()):
            q = _first_row(twice_QK)
            item = int(sorted_QK[q, 1:][twice_QK[q]][0])
            raise ValueError(f"query {first + q} has item {item} twice in its list of neighbours")
        first += len(block_QK)


def _first_row(mask: Tensor) -> int:
    """Of the first True in (Q,) or (Q, K)."""
    return int(mask.nonzero()[0, 0])

"""How good lists of neighbours are: top-k, precision, recall and mAP, as shares of 1.

An item of the bank is relevant to a query if both have the same label.  Everything is averaged
over all queries; one without any relevant item counts 0 everywhere.

Shapes: Q queries, B bank, K neighbours per query, best first.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mrl.search.list_checks import as_integers, check_distinct, check_ids, check_ks, check_lists

PAPER_KS = (10, 25, 50, 100)  # paper, appendix E

_CHUNK = 2**20  # entries of the lists that are looked at in one go


def retrieval_metrics(
    indices: Any,
    query_labels: Any,
    bank_labels: Any,
    ks: Sequence[int] = PAPER_KS,
    query_ids: Any = None,
) -> dict[str, float]:
    """Metrics of lists of neighbours, 0 to 1; ``metrics_of_relevance`` says what each means.

    Args:
        indices: (Q, K) places in the bank, best first, each once; -1 where nothing more was found.
            Like the labels, integers in a tensor or an array.
        query_labels: (Q,) classes of the queries.
        bank_labels: (B,) classes of the bank.
        ks: lengths at which the lists are judged.
        query_ids: (Q,) place of each query in the bank, -1 for those that are not in it.  A query
            is taken out of its own list and is not counted among its relevant items.

    Raises:
        ValueError: for missing labels, sizes that do not match, places outside the bank or twice in
            a list, lists shorter than max(ks) once the query itself is out, or if no query has a
            relevant item.
        TypeError: for labels or places that are not integers.

    Warns:
        If some of the queries have no relevant item.
    """
    found_QK, labels_Q, labels_B = check_lists(indices, query_labels, bank_labels)
    longest = max(check_ks(ks))
    found_QK = found_QK[:, : longest + 1]  # one may be the query itself
    check_distinct(found_QK)
    num_relevant_Q = _class_counts(labels_Q, labels_B)
    if query_ids is not None:
        ids_Q = as_integers("query_ids", query_ids, 1).to(found_QK.device)
        check_ids(ids_Q, labels_Q, labels_B)
        found_QK = _without_self(found_QK, ids_Q, longest)
        num_relevant_Q = num_relevant_Q - (ids_Q >= 0).long()
    found_QK = _cut(found_QK, longest)
    return metrics_of_relevance(_same_class(found_QK, labels_Q, labels_B), num_relevant_Q, ks)


def metrics_of_relevance(
    relevant_QK: Tensor, num_relevant_Q: Tensor, ks: Sequence[int] = PAPER_KS
) -> dict[str, float]:
    """The metrics by name, each for every k of ``ks``:

    - "top1" and "top{k}": whether any of the first k items is relevant
    - "P@{k}": the share of the first k that is relevant
    - "recall@{k}": the share of the query's relevant items that is among the first k
    - "mAP@{k}": the sum of P@i over the relevant places i <= k, divided by k (paper, appendix E);
      it stays below 1 where there are fewer than k relevant items
    - "mAP@{k}_standard": the same sum divided by min(k, relevant items)

    Args:
        relevant_QK: bool, whether each item of a list is relevant, best first.
        num_relevant_Q: how many items of the whole bank are.
        ks: lengths at which the lists are judged, each at most K.

    Raises:
        ValueError: if sizes do not match, a k is outside 1..K, or no query has a relevant item.

    Warns:
        If some of the queries have none.
    """
    ks = check_ks(ks)
    if relevant_QK.ndim != 2 or num_relevant_Q.shape != relevant_QK.shape[:1]:
        raise ValueError(
            f"relevance must be (Q, K) and the numbers of relevant items (Q,), got "
            f"{tuple(relevant_QK.shape)} and {tuple(num_relevant_Q.shape)}"
        )
    relevant_QK = _cut(relevant_QK, max(ks))
    _check_answerable(num_relevant_Q)
    rows = max(1, _CHUNK // max(ks))
    totals: dict[str, float] = {}
    for block_QK, count_Q in zip(relevant_QK.split(rows), num_relevant_Q.split(rows), strict=True):
        for name, value_Q in _of_each_query(block_QK, count_Q, ks):
            totals[name] = totals.get(name, 0.0) + float(value_Q.double().sum())
    return {name: total / len(relevant_QK) for name, total in totals.items()}


def relevance(indices: Any, query_labels: Any, bank_labels: Any) -> Tensor:
    """Bool (Q, K): whether each neighbour has its query's label; arguments as above."""
    return _same_class(*check_lists(indices, query_labels, bank_labels))


def neighbour_recall(found: Any, exact: Any) -> float:
    """Share of the ``exact`` neighbours (Q, k) that are among those ``found`` (Q, K), at any place.

    Where several items are equally near, exact search names the first of them only.

    Raises:
        ValueError: if sizes do not match or ``exact`` has places below 0.
        TypeError: for places that are not integers.
    """
    found_QK = as_integers("found", found, 2)
    exact_Qk = as_integers("exact", exact, 2).to(found_QK.device).contiguous()
    if len(found_QK) != len(exact_Qk) or 0 in exact_Qk.shape or 0 in found_QK.shape:
        raise ValueError(
            f"found and exact need as many queries and at least one neighbour each, got "
            f"{tuple(found_QK.shape)} and {tuple(exact_Qk.shape)}"
        )
    if bool((exact_Qk < 0).any()):
        raise ValueError("the exact neighbours have places below 0: an exact search finds them all")
    sorted_QK = found_QK.sort(dim=1).values
    place_Qk = torch.searchsorted(sorted_QK, exact_Qk).clamp_(max=sorted_QK.shape[1] - 1)
    return float((sorted_QK.gather(1, place_Qk) == exact_Qk).double().mean())


def _of_each_query(
    relevant_QK: Tensor, num_relevant_Q: Tensor, ks: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """Name and value (Q,) of each metric."""
    hits_QK = relevant_QK.double().cumsum(1)
    places_K = torch.arange(1, relevant_QK.shape[1] + 1, device=relevant_QK.device)
    sums_QK = (hits_QK / places_K * relevant_QK).cumsum(1)
    relevant_Q = num_relevant_Q.clamp(min=1)  # without any, the numerators are 0
    yield "top1", relevant_QK[:, 0]
    for k in ks:
        hits_Q, sum_Q = hits_QK[:, k - 1], sums_QK[:, k - 1]
        if k > 1:
            yield f"top{k}", hits_Q > 0
        yield f"P@{k}", hits_Q / k
        yield f"recall@{k}", hits_Q / relevant_Q
        yield f"mAP@{k}", sum_Q / k
        yield f"mAP@{k}_standard", sum_Q / relevant_Q.clamp(max=k)


def _same_class(found_QK: Tensor, labels_Q: Tensor, labels_B: Tensor) -> Tensor:
    rows = max(1, _CHUNK // found_QK.shape[1])
    blocks = [
        (labels_B[found.clamp(min=0)] == labels[:, None]) & (found >= 0)
        for found, labels in zip(found_QK.split(rows), labels_Q.split(rows), strict=True)
    ]
    return torch.cat(blocks)


def _class_counts(labels_Q: Tensor, labels_B: Tensor) -> Tensor:
    """How many items of the bank have each query's label (Q,)."""
    classes, counts = labels_B.unique(return_counts=True)
    place_Q = torch.searchsorted(classes, labels_Q.contiguous()).clamp_(max=len(classes) - 1)
    return torch.where(classes[place_Q] == labels_Q, counts[place_Q], 0)


def _without_self(found_QK: Tensor, ids_Q: Tensor, longest: int) -> Tensor:
    """The lists (Q, longest) with each query's own place taken out, the rest moved up."""
    own_QK = (found_QK == ids_Q[:, None]) & (ids_Q >= 0)[:, None]
    in_list_Q = own_QK.any(1)
    width = found_QK.shape[1]
    if longest >= width and bool(in_list_Q.any()):
        raise ValueError(
            f"lists of {width} neighbours that hold the query itself leave {width - 1}, fewer than "
            f"k={longest}: search for at least {longest + 1}"
        )
    own_Q = torch.where(in_list_Q, own_QK.int().argmax(1), width)
    columns_K = torch.arange(min(longest, width), device=found_QK.device)
    return found_QK.gather(1, columns_K + (columns_K >= own_Q[:, None]))


def _check_answerable(num_relevant_Q: Tensor) -> None:
    missing = int((num_relevant_Q <= 0).sum())
    if missing == len(num_relevant_Q):
        raise ValueError(
            f"none of the {missing} queries has a relevant item in the bank: are these labels of "
            "one set of classes?"
        )
    if missing:
        warnings.warn(
            f"{missing} of {len(num_relevant_Q)} queries have no relevant item in the bank: they "
            "count 0 in every metric",
            stacklevel=3,
        )


def _cut(lists_QK: Tensor, longest: int) -> Tensor:
    if lists_QK.shape[1] < longest:
        raise ValueError(
            f"lists of {lists_QK.shape[1]} neighbours cannot be judged at k={longest}: search for "
            "more, or leave such k out of ks"
        )
    return lists_QK[:, :longest]

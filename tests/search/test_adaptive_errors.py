"""What rerank, adaptive_search and funnel_search refuse, and in which words."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mrl.search import adaptive, adaptive_search, funnel_search, rerank
from mrl.search.prefix_index import PrefixIndex


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BANK, QUERIES = normal(6, 4), normal(3, 4, seed=1)
FUNNEL = {"dims": [1, 2, 4], "shortlists": [5, 3], "k": 2}
ADAPTIVE = {"shortlist_dim": 2, "rerank_dim": 4, "shortlist": 4, "k": 2}
RERANK = {"candidates": torch.arange(4).expand(3, -1), "dim": 4, "k": 2}


@pytest.mark.parametrize(
    ("search", "arguments", "message"),
    [
        (funnel_search, {"dims": [2, 1, 4]}, "strictly increasing"),
        (funnel_search, {"dims": [2, 2, 4]}, "strictly increasing"),
        (funnel_search, {"dims": [1, 2, 5]}, "granularity 5 exceeds the embedding width 4"),
        (funnel_search, {"dims": []}, "empty"),
        (funnel_search, {"shortlists": [5]}, r"3 widths \[1, 2, 4\] need 2 shortlists .*\[5\]"),
        (funnel_search, {"shortlists": [3, 5]}, r"shortlist 1 must lie in 1..3 .*before.*got 5"),
        (funnel_search, {"shortlists": [7, 3]}, r"first shortlist must lie in 1..6 .*got 7"),
        (funnel_search, {"k": 4}, r"k must lie in 1..3 \(the shortlist before it\), got 4"),
        (funnel_search, {"k": 0}, "k must lie in 1..3 .*got 0"),
        (funnel_search, {"metric": "dot"}, "'dot'"),
        (adaptive_search, {"shortlist_dim": 4, "rerank_dim": 2}, "shortlist_dim 4 exceeds .* 2"),
        (adaptive_search, {"shortlist_dim": 0}, "positive"),
        (adaptive_search, {"rerank_dim": 5}, "granularity 5 exceeds the embedding width 4"),
        (adaptive_search, {"shortlist": 7}, r"must lie in 1..6 \(the rows of the bank\), got 7"),
        (adaptive_search, {"k": 5}, r"k must lie in 1..4 .*got 5"),
        (adaptive_search, {"k": 2.0}, r"k must lie in 1..4 .*got 2.0"),
        (adaptive_search, {"bank": torch.empty(0, 4)}, r"bank must be .*\(0, 4\)"),
        (adaptive_search, {"queries": torch.empty(0, 4)}, r"queries must be .*\(0, 4\)"),
        (adaptive_search, {"queries": torch.ones(4)}, "queries must be"),
        (adaptive_search, {"queries": torch.ones(2, 3)}, "differ in width: 4 and 3"),
        (rerank, {"k": 5}, r"k must lie in 1..4 \(the candidates of each query\), got 5"),
        (rerank, {"dim": 5}, "granularity 5 exceeds"),
        (rerank, {"metric": "dot"}, "'dot'"),
        (rerank, {"candidates": torch.tensor([[6]] * 3), "k": 1}, r"lie in 0..5 .*got 6"),
        (rerank, {"candidates": torch.tensor([[-2]] * 3), "k": 1}, r"lie in 0..5 .*got -2"),
        (rerank, {"candidates": torch.ones(2, 4, dtype=torch.int64)}, r"\(2, 4\) for 3 queries"),
        (rerank, {"candidates": torch.ones(3, 0, dtype=torch.int64)}, r"\(3, 0\)"),
        (
            rerank,
            {"candidates": torch.tensor([[0, 1], [-1, -1], [3, 3]])},
            "query 2 has candidate 3 more than once",
        ),
    ],
)
def test_bad_arguments(
    monkeypatch: pytest.MonkeyPatch,
    search: Callable[..., object],
    arguments: dict[str, object],
    message: str,
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a search began before the arguments were checked")

    monkeypatch.setattr(adaptive, "nested_knn", never)
    usual = {funnel_search: FUNNEL, adaptive_search: ADAPTIVE, rerank: RERANK}[search]
    with pytest.raises(ValueError, match=message):
        search(**{"bank": BANK, "queries": QUERIES, **usual, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": QUERIES.double()}, r"float32 on cpu and torch.float64"),
        ({"bank": BANK.long()}, "bank must be a floating-point tensor.*torch.int64"),
        ({"bank": np.ones((6, 4), dtype=np.int8)}, "bank must hold floating-point.*int8"),
        ({"queries": [[1.0]]}, "queries must be .* got list"),
    ],
)
@pytest.mark.parametrize("search", [funnel_search, adaptive_search, rerank])
def test_bad_types(
    search: Callable[..., object], arguments: dict[str, object], message: str
) -> None:
    usual = {funnel_search: FUNNEL, adaptive_search: ADAPTIVE, rerank: RERANK}[search]
    with pytest.raises(TypeError, match=message):
        search(**{"bank": BANK, "queries": QUERIES, **usual, **arguments})


@pytest.mark.parametrize(
    "candidates", [torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int32), [[1]]]
)
def test_candidates_are_int64(candidates: object) -> None:
    with pytest.raises(TypeError, match="candidates must be int64"):
        rerank(BANK, QUERIES, candidates, 4, 1)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_named(monkeypatch: pytest.MonkeyPatch, metric: str, value: float) -> None:
    bad_bank, bad_queries = BANK.clone(), QUERIES.clone()
    bad_bank[5, 3] = bad_queries[2, 3] = value
    everything = torch.arange(6).expand(3, -1)
    rerank(bad_bank, bad_queries, everything, 3, 1, metric=metric)  # that column is not read
    rerank(bad_bank, QUERIES, everything[:, :5], 4, 1, metric=metric)  # nor that row
    message = r"bank row 5 \(granularity 4\) has NaN or infinite values"
    with pytest.raises(ValueError, match=message):
        rerank(bad_bank, QUERIES, everything, 4, 1, metric=metric)
    with pytest.raises(ValueError, match=message):
        adaptive_search(bad_bank, QUERIES, 2, 4, 6, 1, metric=metric)
    monkeypatch.setattr(adaptive, "nested_knn", None)  # the queries are checked before
    message = r"queries row 2 \(granularity 4\) has NaN or infinite values"
    with pytest.raises(ValueError, match=message):
        rerank(BANK, bad_queries, everything, 4, 1, metric=metric)
    with pytest.raises(ValueError, match=message):
        adaptive_search(BANK, bad_queries, 2, 4, 6, 1, metric=metric)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortlist_dim": 3}, "is of width 2, but the search wants 3"),
        ({"metric": "l2"}, "has the metric cosine, but the search wants l2"),
        ({"bank": BANK[:5]}, "is of a bank of items 6, but the search wants 5"),
        (
            {"bank": normal(6, 5), "queries": normal(3, 5)},
            "is of a bank of width 4, but the search wants 5",
        ),
    ],
)
def test_index_of_something_else(arguments: dict[str, object], message: str) -> None:
    index = PrefixIndex.build(BANK, 2)
    usual = {"bank": BANK, "queries": QUERIES, **ADAPTIVE}
    adaptive_search(**usual, index=index)
    with pytest.raises(ValueError, match=message):
        adaptive_search(**{**usual, **arguments}, index=index)

"""rerank, adaptive_search and funnel_search against slow loops, and their errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mrl
from mrl.search import adaptive_search, funnel_search, rerank, reranking
from mrl.search.prefix_index import PrefixIndex


def score(x: Tensor, q: Tensor, metric: str) -> float:
    x, q = x.double(), q.double()
    if metric == "l2":
        return float((q - x).square().sum())
    return float((q * x).sum() / (q.square().sum().sqrt() * x.square().sum().sqrt()))


def slow_sort(
    bank: Tensor, query: Tensor, candidates: list[int], m: int, metric: str
) -> list[tuple[float, int]]:
    """Best first; -1 left out."""
    sign = -1 if metric == "cosine" else 1
    found = [(score(bank[i, :m], query[:m], metric), i) for i in candidates if i >= 0]
    return sorted(found, key=lambda pair: (sign * pair[0], pair[1]))


def slow_funnel(
    bank: Tensor, query: Tensor, dims: list[int], lists: list[int], k: int, metric: str
) -> list[tuple[float, int]]:
    found = slow_sort(bank, query, list(range(len(bank))), dims[0], metric)
    for m, count in zip(dims[1:], lists, strict=True):
        found = slow_sort(bank, query, [i for _, i in found[:count]], m, metric)
    return found[:k]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(num_queries: int, num_items: int, count: int, *, seed: int = 0) -> Tensor:
    """Distinct candidates of each query, in no order."""
    return normal(num_queries, num_items, seed=seed).argsort(dim=1)[:, :count].contiguous()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 4, 13])
@pytest.mark.parametrize("scratch", [2**19, 100])
def test_rerank_equals_a_slow_loop(
    monkeypatch: pytest.MonkeyPatch, metric: str, dtype: torch.dtype, k: int, scratch: int
) -> None:
    monkeypatch.setattr(reranking, "_SCRATCH", scratch)  # 100: several steps for each query
    bank, queries = normal(50, 9).to(dtype), normal(35, 9, seed=1).to(dtype)  # 35: two blocks
    candidates = drawn(35, 50, 13)
    for m in (2, 9):
        scores, indices = rerank(bank, queries, candidates, m, k, metric=metric)
        assert indices.shape == (35, k) and indices.dtype == torch.int64
        assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for i in range(35):
            wanted = slow_sort(bank, queries[i], candidates[i].tolist(), m, metric)[:k]
            assert indices[i].tolist() == [index for _, index in wanted]
            assert scores[i].tolist() == pytest.approx([s for s, _ in wanted], rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rerank_of_everything_is_the_exact_search(metric: str, dtype: torch.dtype) -> None:
    bank, queries = normal(300, 40).to(dtype), normal(40, 40, seed=1).to(dtype)
    everything = torch.arange(300).expand(40, -1)
    found = rerank(bank, queries, everything, 24, 7, metric=metric)
    wanted = mrl.nested_knn(bank, queries, [24], 7, metric)
    assert torch.equal(found[1], wanted[1][0])
    torch.testing.assert_close(found[0], wanted[0][0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_rerank_where_float32_cannot_tell(metric: str) -> None:
    bank = 10 + normal(2000, 4) * 1e-2
    queries = bank[:20] + 1e-4
    _, indices = rerank(bank, queries, drawn(20, 2000, 1500), 4, 5, metric=metric)
    for i, row in enumerate(drawn(20, 2000, 1500).tolist()):
        wanted = slow_sort(bank, queries[i], row, 4, metric)[:5]
        assert indices[i].tolist() == [index for _, index in wanted]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_equal_rows_tie_by_lower_index(metric: str, k: int) -> None:
    bank = normal(4, 33)[torch.arange(200) % 4]  # 50 copies of each
    queries = normal(33, 33, seed=1)
    candidates = torch.arange(199, -1, -1).expand(33, -1)
    scores, indices = rerank(bank, queries, candidates, 33, k, metric=metric)
    assert (indices == indices[:, :1] + 4 * torch.arange(k)).all()
    assert (indices[:, 0] < 4).all()
    assert (scores == scores[:, :1]).all()


@pytest.mark.parametrize(("metric", "worst"), [("cosine", -torch.inf), ("l2", torch.inf)])
def test_missing_candidates_come_last(metric: str, worst: float) -> None:
    bank, queries = normal(9, 4), normal(3, 4, seed=1)
    candidates = torch.tensor([[-1, 4, -1, 2], [-1, -1, -1, -1], [8, 7, 0, 3]])
    scores, indices = rerank(bank, queries, candidates, 4, 3, metric=metric)
    wanted = [[i for _, i in slow_sort(bank, queries[j], candidates[j].tolist(), 4, metric)]
              for j in range(3)]  # fmt: skip
    assert indices.tolist() == [[*wanted[0], -1], [-1, -1, -1], wanted[2][:3]]
    assert torch.equal(scores == worst, indices == -1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_funnel_equals_a_slow_loop(data: st.DataObject) -> None:
    embed_dim, size = data.draw(st.integers(1, 10)), data.draw(st.integers(1, 30))
    dims = sorted(data.draw(st.sets(st.integers(1, embed_dim), min_size=1, max_size=5)))
    lists = sorted((data.draw(st.integers(1, size)) for _ in dims[1:]), reverse=True)
    k = data.draw(st.integers(1, lists[-1] if lists else size))
    metric = data.draw(st.sampled_from(["cosine", "l2"]))
    # Few different values: many ties.
    values = st.lists(st.sampled_from([-2.0, 1.0, 3.0]), min_size=embed_dim, max_size=embed_dim)
    bank = torch.tensor(data.draw(st.lists(values, min_size=size, max_size=size)))
    queries = torch.tensor(data.draw(st.lists(values, min_size=2, max_size=2)))
    if metric == "cosine":  # where equal scores of different rows differ by float64 rounding
        bank, queries = bank + 0.1 * normal(size, embed_dim), queries + 0.1 * normal(2, embed_dim)
    scores, indices = funnel_search(bank, queries, dims, lists, k, metric=metric)
    for i in range(2):
        wanted = slow_funnel(bank, queries[i], dims, lists, k, metric)
        if metric == "l2" or embed_dim > 1:
            close = [s for s, _ in wanted]
            assert scores[i].tolist() == pytest.approx(close, rel=1e-5, abs=1e-6)
        if dims[0] > 1 or metric == "l2":  # the cosine of one column is 1 or -1, up to rounding
            assert indices[i].tolist() == [index for _, index in wanted]


def test_each_stage_reads_the_output_of_the_one_before() -> None:
    """The item nearest at full width is cut by the second stage, as it was second at width 2."""
    bank = torch.tensor([[1.0, 0, 9], [1.1, 0.5, 9], [1.2, 0.6, 0], [5.0, 0, 0]])
    query = torch.tensor([[1.0, 0.6, 0]])
    # by column 1: 0, 1, 2, 3; the first three by columns 1-2: 1, 2, 0; the first of these: 1
    _, indices = funnel_search(bank, query, [1, 2, 3], [3, 1], 1, metric="l2")
    assert indices.tolist() == [[1]]
    _, indices = adaptive_search(bank, query, 1, 3, 3, 1, metric="l2")
    assert indices.tolist() == [[2]]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("kind", [None, "exact"])
def test_funnel_of_one_stage_is_adaptive(metric: str, kind: str | None) -> None:
    bank, queries = normal(60, 12), normal(34, 12, seed=1)
    index = PrefixIndex.build(bank, 3, metric=metric) if kind else None
    funnel = funnel_search(bank, queries, [3, 12], [20], 5, metric=metric, index=index)
    adaptive = adaptive_search(bank, queries, 3, 12, 20, 5, metric=metric, index=index)
    plain = adaptive_search(bank, queries, 3, 12, 20, 5, metric=metric)
    for a, b, c in zip(funnel, adaptive, plain, strict=True):
        assert torch.equal(a, b) and torch.equal(b, c)
    exact = mrl.nested_knn(bank, queries, [12], 5, metric)[1][0]
    assert not torch.equal(adaptive[1], exact)  # a shortlist of 20 by 3 columns misses some
    everything = adaptive_search(bank, queries, 3, 12, 60, 5, metric=metric, index=index)
    assert torch.equal(everything[1], exact)


def test_same_width_twice_is_the_search_at_that_width() -> None:
    bank, queries = normal(60, 12), normal(5, 12, seed=1)
    scores, indices = adaptive_search(bank, queries, 4, 4, 20, 6)
    wanted = mrl.nested_knn(bank, queries, [4], 6)
    assert torch.equal(indices, wanted[1][0])
    torch.testing.assert_close(scores, wanted[0][0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_memory_map_equals_tensor(dtype: type, tmp_path: Path) -> None:
    bank, queries = (
        normal(80, 16).numpy().astype(dtype),
        normal(6, 16, seed=1).numpy().astype(dtype),
    )
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    found = funnel_search(mapped, queries, [4, 8, 16], [30, 10], 5)
    wanted = funnel_search(
        torch.from_numpy(bank), torch.from_numpy(queries), [4, 8, 16], [30, 10], 5
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_inputs_are_unchanged(dtype: torch.dtype, metric: str) -> None:
    bank, queries = normal(40, 8).to(dtype).requires_grad_(), normal(5, 8, seed=1).to(dtype)
    candidates, dims, lists = drawn(5, 40, 12), [2, 4, 8], [20, 10]
    before = bank.detach().clone(), queries.clone(), candidates.clone()
    index = PrefixIndex.build(bank, 2, metric=metric)
    for _ in range(2):
        rerank(bank, queries, candidates, 8, 3, metric=metric)
        adaptive_search(bank, queries, 2, 8, 10, 3, metric=metric, index=index)
        scores, _ = funnel_search(bank, queries, dims, lists, 3, metric=metric)
    assert not scores.requires_grad
    assert torch.equal(bank, before[0]) and torch.equal(queries, before[1])
    assert torch.equal(candidates, before[2]) and (dims, lists) == ([2, 4, 8], [20, 10])


def test_query_alone_and_threads_change_nothing() -> None:
    bank, queries = normal(300, 16), normal(40, 16, seed=1)
    one = adaptive_search(bank, queries, 4, 16, 50, 10)
    torch.set_num_threads(2)
    try:
        two = adaptive_search(bank, queries, 4, 16, 50, 10)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    alone = [adaptive_search(bank, queries[i : i + 1], 4, 16, 50, 10) for i in range(40)]
    for part in range(2):
        assert torch.equal(one[part], two[part])
        assert torch.equal(one[part], torch.cat([found[part] for found in alone]))


def test_one_query_one_item() -> None:
    scores, indices = adaptive_search(torch.tensor([[2.0]]), torch.tensor([[-3.0]]), 1, 1, 1, 1)
    assert (scores.tolist(), indices.tolist()) == ([[-1.0]], [[0]])


def test_zero_prefixes_score_zero_when_allowed() -> None:
    bank = torch.tensor([[0.0, 0, 0], [-1, 0, 0], [1, 1, 0]])
    queries = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    everything = torch.arange(3).expand(2, -1)
    with pytest.raises(ValueError, match="queries row 1 is all zeros in its first 3 columns"):
        rerank(bank, queries, everything, 3, 3)
    with pytest.raises(ValueError, match="bank row 0 is all zeros in its first 3 columns"):
        rerank(bank, queries[:1], everything[:1], 3, 3)
    scores, indices = rerank(bank, queries, everything, 3, 3, allow_zero=True)
    assert indices.tolist() == [[2, 0, 1], [0, 1, 2]]
    assert scores.tolist() == [pytest.approx([0.5**0.5, 0, -1]), [0, 0, 0]]
    scores, indices = adaptive_search(bank, queries, 1, 3, 3, 3, allow_zero=True)
    assert indices.tolist() == [[2, 0, 1], [0, 1, 2]]

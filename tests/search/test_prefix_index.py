"""Prefix indexes: what each kind finds, options, and what is refused at building and searching."""

import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import mrl
from mrl.search import adaptive_search, faiss_index
from mrl.search.prefix_index import KINDS, PrefixIndex

pytest.importorskip("faiss")
pytestmark = pytest.mark.filterwarnings("ignore:.*FAISS advises")
FAST = {  # options with which the small tests train quickly and find nearly everything
    "IVF": {"nlist": 8, "nprobe": 6},
    "IVFPQ": {"nlist": 4, "nprobe": 4, "code_bytes": 4},
    "OPQ": {"code_bytes": 2},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BANK, QUERIES = normal(600, 12) * 3, normal(20, 12, seed=1)


def build(kind: str, metric: str = "cosine", bank: Tensor = BANK, **options: int) -> PrefixIndex:
    return PrefixIndex.build(bank, 8, kind, metric, **{**FAST.get(kind, {}), **options})


@cache
def shared(kind: str, metric: str = "cosine") -> PrefixIndex:
    """For tests that only search."""
    return build(kind, metric)


def share_found(found: Tensor, wanted: Tensor) -> float:
    return float((found[:, :, None] == wanted[:, None]).any(2).float().mean())


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(
    ("kind", "least"),
    [("exact", 1), ("Flat", 1), ("HNSW32", 0.98), ("IVF", 0.9), ("IVFPQ", 0.8), ("OPQ", 0.6)],
)
def test_finds_the_neighbours_by_the_prefix(kind: str, least: float, metric: str) -> None:
    scores, indices = shared(kind, metric).search(QUERIES, 10)
    wanted_scores, wanted = mrl.nested_knn(BANK, QUERIES, [8], 10, metric)
    assert (scores.dtype, indices.dtype) == (torch.float32, torch.int64)
    assert share_found(indices, wanted[0]) >= least
    order = scores.sort(dim=1, descending=metric == "cosine").values
    assert torch.equal(scores, order)  # best first
    if kind in ("exact", "Flat"):
        assert torch.equal(indices, wanted[0])
        torch.testing.assert_close(scores, wanted_scores[0], rtol=1e-5, atol=1e-5)
    if kind == "exact":
        assert torch.equal(scores, wanted_scores[0])
    if kind in ("HNSW32", "IVF"):  # true scores of what was found
        x, q = BANK[indices][:, :, :8], QUERIES[:, None, :8]
        true = torch.cosine_similarity(x, q, dim=2) if metric == "cosine" else (
            (x - q).square().sum(2)
        )  # fmt: skip
        torch.testing.assert_close(scores, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_same_seed_same_index(kind: str, metric: str) -> None:
    first, second = (
        shared(kind, metric).search(QUERIES, 10),
        build(kind, metric).search(QUERIES, 10),
    )
    assert torch.equal(first[1], second[1]) and torch.equal(first[0], second[0])


@pytest.mark.parametrize("kind", ["IVF", "IVFPQ", "OPQ"])
def test_another_seed_trains_on_others(kind: str) -> None:
    options = {"nprobe": 1, "nlist": 8, "train_size": 300}
    first, second = (build(kind, seed=seed, **options).search(QUERIES, 10) for seed in (0, 1))
    assert not torch.equal(first[1], second[1])


@pytest.mark.parametrize("kind", KINDS)
def test_shortlist_of_an_index_is_reranked(kind: str) -> None:
    scores, indices = adaptive_search(BANK, QUERIES, 8, 12, 100, 5, index=shared(kind))
    wanted_scores, wanted = adaptive_search(BANK, QUERIES, 8, 12, 100, 5)
    assert share_found(indices, wanted) > 0.9
    same = indices == wanted
    torch.testing.assert_close(scores[same], wanted_scores[same])


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", ["exact", "Flat", "IVF"])
def test_memory_map_in_blocks_equals_tensor(
    kind: str, dtype: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(kind, metric, BANK.to(getattr(torch, dtype)))
    np.save(tmp_path / "bank.npy", BANK.numpy().astype(dtype))
    monkeypatch.setattr(faiss_index, "_ADD_ROWS", 7)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    blocks = build(kind, metric, mapped)
    assert blocks.bank_hash == whole.bank_hash
    for a, b in zip(blocks.search(QUERIES, 10), whole.search(QUERIES, 10), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_bank_is_neither_changed_nor_kept(kind: str) -> None:
    bank = BANK[:, :8].clone()  # indexed at its full width: a view would do, were it kept
    index = build(kind, bank=bank)
    assert torch.equal(bank, BANK[:, :8])
    before = index.search(QUERIES[:, :8], 5)
    bank.zero_()
    assert torch.equal(index.search(QUERIES[:, :8], 5)[1], before[1])


def test_cut_queries_equal_whole_ones() -> None:
    index = build("exact")
    assert torch.equal(index.search(QUERIES, 5)[1], index.search(QUERIES[:, :8], 5)[1])
    assert torch.equal(index.search(QUERIES.numpy(), 5)[1], index.search(QUERIES.double(), 5)[1])


@pytest.mark.parametrize(("metric", "worst"), [("cosine", -torch.inf), ("l2", torch.inf)])
def test_too_few_found_are_filled_up(metric: str, worst: float) -> None:
    index = build("IVF", metric, nlist=60, nprobe=1)
    scores, indices = index.search(QUERIES, 100)
    assert (indices == -1).any() and (indices[:, 0] >= 0).all()
    assert torch.equal(indices == -1, scores == worst)
    reranked = adaptive_search(BANK, QUERIES, 8, 12, 100, 100, metric=metric, index=index)
    assert torch.equal(reranked[1] == -1, indices == -1)


def test_search_options_can_change() -> None:
    index = build("IVF", nlist=60, nprobe=1)
    few = index.search(QUERIES, 10)[1]
    index.tune(nprobe=60)
    assert index.options["nprobe"] == 60
    assert torch.equal(index.search(QUERIES, 10)[1], build("Flat").search(QUERIES, 10)[1])
    assert not torch.equal(index.search(QUERIES, 10)[1], few)
    with pytest.raises(ValueError, match="no ef_search to tune"):
        index.tune(ef_search=10)
    with pytest.raises(ValueError, match=r"nprobe must lie in 1..60 .*got 61"):
        index.tune(nprobe=61)
    graph = build("HNSW32", ef_construction=80, ef_search=200)
    assert (graph.content.hnsw.efConstruction, graph.content.hnsw.efSearch) == (80, 200)
    graph.tune(ef_search=300)
    assert graph.content.hnsw.efSearch == 300


def test_few_items_get_few_lists() -> None:
    index = PrefixIndex.build(BANK[:30], 8, "IVF")
    assert index.options == {"nlist": 1, "nprobe": 1, "train_size": 30}
    assert torch.equal(
        index.search(QUERIES, 5)[1], mrl.nested_knn(BANK[:30], QUERIES, [8], 5)[1][0]
    )
    with pytest.warns(UserWarning, match="PQ learns 256 centroids from 600 items.*9984"):
        PrefixIndex.build(BANK, 8, "IVFPQ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "HNSW"}, "kind must be one of exact, .*got 'HNSW'"),
        ({"metric": "dot"}, "'dot'"),
        ({"dim": 13}, "granularity 13 exceeds the embedding width 12"),
        ({"bank": torch.empty(0, 12)}, "bank must be"),
        ({"kind": "Flat", "nlist": 3}, "'Flat' has no option nlist; it has none"),
        ({"kind": "OPQ", "nprobe": 3}, "'OPQ' has no option nprobe; it has code_bytes, nlist"),
        ({"kind": "HNSW32", "ef_search": 0}, "ef_search must be an integer of at least 1, got 0"),
        ({"kind": "IVF", "nlist": 601}, "learns 601 centroids .*got 600 of the bank's 600"),
        ({"kind": "IVF", "nlist": 9, "nprobe": 10}, "nprobe 10 exceeds nlist 9"),
        ({"kind": "IVF", "train_size": 601}, "train_size 601 exceeds the bank's 600"),
        ({"kind": "IVFPQ", "bank": BANK[:200]}, "learns 256 centroids .*of the bank's 200"),
        ({"kind": "OPQ", "code_bytes": 3}, "code_bytes must divide the width 8.*got 3"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrefixIndex.build(**{"bank": BANK, "dim": 8, **arguments})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_not_finite_is_named(kind: str, value: float) -> None:
    bank, queries = BANK.clone(), QUERIES.clone()
    bank[501, 7] = queries[4, 7] = value
    with pytest.raises(ValueError, match=r"bank row 501 \(granularity 8\) has NaN or infinite"):
        build(kind, "l2", bank)
    with pytest.raises(ValueError, match=r"queries row 4 \(granularity 8\) has NaN or infinite"):
        shared(kind).search(queries, 3)


@pytest.mark.parametrize("kind", ["exact", "Flat"])
def test_zero_prefixes(kind: str) -> None:
    bank, queries = BANK.clone(), QUERIES.clone()
    bank[7, :8] = queries[3, :8] = 0
    with pytest.raises(ValueError, match="bank row 7 is all zeros in its first 8 columns"):
        build(kind, bank=bank)
    index = build(kind, bank=bank, allow_zero=True)
    with pytest.raises(ValueError, match="queries row 3 is all zeros in its first 8 columns"):
        index.search(queries, 3)
    scores, indices = index.search(queries, 600, allow_zero=True)
    assert (scores[3] == 0).all() and (scores[indices == 7] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-200, 1e-40, 1e-14, 1e25, 1e200])
def test_cosine_does_not_depend_on_scales(kind: str, scale: float) -> None:
    bank, queries = BANK.double(), QUERIES.double()
    index = build(kind, bank=bank)
    bank[::3] *= scale
    scores, indices = build(kind, bank=bank).search(scale * queries, 5)
    wanted_scores, wanted = index.search(queries, 5)
    assert share_found(indices, wanted) > 0.99
    torch.testing.assert_close(scores, wanted_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-40, 1e-25, 1e20, 1e30])
def test_exact_l2_index_at_any_scale_of_float32(scale: float) -> None:
    bank, queries = scale * BANK, scale * QUERIES
    found = build("exact", "l2", bank).search(queries, 5)
    wanted = mrl.nested_knn(bank, queries, [8], 5, "l2")
    assert torch.equal(found[0], wanted[0][0]) and torch.equal(found[1], wanted[1][0])


@pytest.mark.parametrize(
    ("kind", "bank", "queries", "message"),
    [
        ("Flat", 1e-20 * BANK, None, "longest row of bank is too short for squared distances"),
        ("Flat", 1e20 * BANK, None, "longest row of bank is too long .* multiply bank and queries"),
        ("exact", 1e-60 * BANK.double(), None, "bank is too short .* kind 'exact'"),
        ("exact", 1e60 * BANK.double(), None, "bank is too long"),
        ("Flat", BANK, 1e20 * QUERIES, "queries is too long"),
        ("exact", BANK.double(), 1e60 * QUERIES.double(), "queries is too long"),
    ],
)
def test_l2_that_float32_cannot_hold_is_refused(
    kind: str, bank: Tensor, queries: Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, "l2", bank).search(queries, 5)


def test_bad_searches() -> None:
    index = build("exact")
    with pytest.raises(ValueError, match="queries have width 9, .* first 8 of 12 columns"):
        index.search(QUERIES[:, :9], 1)
    for k in (0, 601):
        with pytest.raises(ValueError, match=rf"k must lie in 1..600 .*got {k}"):
            index.search(QUERIES, k)
    with pytest.raises(TypeError, match="queries must be"):
        index.search(QUERIES.long(), 1)


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        build("Flat")
    build("exact").search(QUERIES, 3)

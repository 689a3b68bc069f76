"""nested_knn against brute force in float64, its ties, and its errors."""

import pytest
import torch
from brute_force import brute_force
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mrl
from mrl.search import candidates, scan

CHUNKS = [(256, 2048), (1, 1), (7, 5), (3, 64)]  # queries, bank rows


def use_chunks(monkeypatch: pytest.MonkeyPatch, queries: int, rows: int) -> None:
    monkeypatch.setattr(scan, "_CHUNK_QUERIES", queries)
    monkeypatch.setattr(scan, "_BLOCK_ROWS", rows)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 5, 37])
@pytest.mark.parametrize("chunks", CHUNKS)
def test_equals_brute_force(
    metric: str,
    dtype: torch.dtype,
    k: int,
    chunks: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_chunks(monkeypatch, *chunks)
    bank, queries = normal(37, 24).to(dtype), normal(11, 24, seed=1).to(dtype)
    widths = [2, 3, 8, 17, 24]
    scores, indices = mrl.nested_knn(bank, queries, widths, k, metric)
    wanted_scores, wanted = brute_force(bank, queries, widths, k, metric)
    assert indices.dtype == torch.int64
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(indices, wanted)
    torch.testing.assert_close(scores.double(), wanted_scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_equals_brute_force_where_float32_cannot_tell(metric: str) -> None:
    """Thousands of neighbours closer together than a float32 product resolves."""
    bank = 10 + normal(3000, 4) * 1e-2
    queries = bank[:20] + 1e-4
    scores, indices = mrl.nested_knn(bank, queries, [2, 4], 3, metric)
    wanted_scores, wanted = brute_force(bank, queries, [2, 4], 3, metric)
    assert torch.equal(indices, wanted)
    torch.testing.assert_close(scores.double(), wanted_scores, rtol=1e-6, atol=1e-7)


def test_clusters_like_a_trained_classifiers() -> None:
    centres = normal(10, 32).relu() * 5
    bank = (centres[torch.arange(400) % 10] + 0.05 * normal(400, 32, seed=1)).relu() + 1e-3
    queries = (centres[torch.arange(50) % 10] + 0.05 * normal(50, 32, seed=2)).relu() + 1e-3
    _, indices = mrl.nested_knn(bank, queries, [2, 4, 32], 5)
    assert torch.equal(indices, brute_force(bank, queries, [2, 4, 32], 5, "cosine")[1])


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("rows", [1, 7, 2048])
def test_equal_rows_tie_by_lower_index(
    metric: str, k: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_chunks(monkeypatch, 4, rows)
    distinct = normal(6, 40)
    order = torch.randint(6, (200,), generator=torch.Generator().manual_seed(3))
    bank = distinct[order]
    _, indices = mrl.nested_knn(bank, distinct, [2, 17, 40], k, metric)
    wanted = torch.stack([(order == i).nonzero()[:k, 0] for i in range(6)])
    assert (indices == wanted).all()


def test_scaled_rows_tie_for_cosine() -> None:
    bank = torch.tensor([[0.0, 1.0], [4.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    scores, indices = mrl.nested_knn(bank, torch.tensor([[3.0, 0.0]]), [2], 3)
    assert indices.tolist() == [[[1, 2, 3]]]
    assert scores.tolist() == [[[1.0, 1.0, 1.0]]]


def test_many_ties_are_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_MAX_CANDIDATES", 10)
    use_chunks(monkeypatch, 4, 50)
    bank = torch.ones(300, 20)  # a width at which equal rows are not looked for beforehand
    _, indices = mrl.nested_knn(bank, bank[:5], [20], 2)
    assert (indices == torch.tensor([0, 1])).all()


def test_one_query_one_row_one_column() -> None:
    scores, indices = mrl.nested_knn(torch.tensor([[2.0]]), torch.tensor([[-3.0]]), [1])
    assert (scores.tolist(), indices.tolist()) == ([[[-1.0]]], [[[0]]])


def test_query_alone_equals_query_in_batch() -> None:
    bank, queries = normal(500, 16), normal(9, 16, seed=1)
    scores, indices = mrl.nested_knn(bank, queries, [2, 16], 3)
    for i in range(9):
        alone = mrl.nested_knn(bank, queries[i : i + 1], [2, 16], 3)
        torch.testing.assert_close(alone[0], scores[:, i : i + 1], rtol=0, atol=1e-6)
        assert torch.equal(alone[1], indices[:, i : i + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_inputs_and_settings_are_unchanged(dtype: torch.dtype, metric: str) -> None:
    bank, queries = normal(30, 8).to(dtype), normal(5, 8, seed=1).to(dtype).requires_grad_()
    before = bank.clone(), queries.clone()
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    scores, _ = mrl.nested_knn(bank, queries, [2, 8], 2, metric)
    assert torch.equal(bank, before[0])
    assert torch.equal(queries, before[1])
    assert not scores.requires_grad
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)


def test_exact_although_reduced_precision_is_allowed() -> None:
    bank, queries = normal(300, 64), normal(20, 64, seed=1)
    torch.set_float32_matmul_precision("medium")
    try:
        _, indices = mrl.nested_knn(bank, queries, [64])
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(indices, brute_force(bank, queries, [64], 1, "cosine")[1])


def test_zero_prefixes_score_zero_when_allowed() -> None:
    bank = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    scores, indices = mrl.nested_knn(bank, queries, [2, 3], 2, allow_zero=True)
    assert indices.tolist() == [[[2, 0], [0, 1]], [[2, 0], [0, 1]]]
    torch.testing.assert_close(
        scores, torch.tensor([[[0.5**0.5, 0], [0, 0]], [[0.5**0.5, 0], [1, 0]]])
    )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_one_width_alone_equals_many(data: st.DataObject) -> None:
    embed_dim = data.draw(st.integers(2, 12))
    widths = sorted(data.draw(st.sets(st.integers(1, embed_dim), min_size=1)))
    size, k = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    metric = data.draw(st.sampled_from(["cosine", "l2"]))
    seed = data.draw(st.integers(0, 999))
    bank, queries = normal(size, embed_dim, seed=seed), normal(4, embed_dim, seed=seed + 1)
    k = min(k, size)
    scores, indices = mrl.nested_knn(bank, queries, widths, k, metric)
    for g, m in enumerate(widths):
        alone = mrl.nested_knn(bank[:, :m], queries[:, :m], [m], k, metric)
        assert torch.equal(alone[1][0], indices[g])
        torch.testing.assert_close(alone[0][0], scores[g], rtol=1e-6, atol=1e-6)


BANK, QUERIES = normal(6, 4), normal(3, 4, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"granularities": [4, 2]}, "strictly increasing"),
        ({"granularities": [2, 2]}, "strictly increasing"),
        ({"granularities": [0, 2]}, "positive"),
        ({"granularities": [2, 5]}, "granularity 5 exceeds the embedding width 4"),
        ({"granularities": []}, "empty"),
        ({"k": 0}, "k must lie in 1..6"),
        ({"k": 7}, "k must lie in 1..6 .*got 7"),
        ({"metric": "dot"}, "'dot'"),
        ({"max_bytes": 1000}, "max_bytes must be at least 1048576, got 1000"),
        ({"bank": torch.empty(0, 4)}, r"bank must be .*\(0, 4\)"),
        ({"queries": torch.empty(0, 4)}, r"queries must be .*\(0, 4\)"),
        ({"queries": torch.ones(4)}, r"queries must be"),
        ({"queries": torch.ones(2, 3)}, "differ in width: 4 and 3"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    given_ = {"bank": BANK, "queries": QUERIES, "granularities": [2, 4], **arguments}
    with pytest.raises(ValueError, match=message):
        mrl.nested_knn(**given_)


def test_bad_types() -> None:
    with pytest.raises(TypeError, match=r"float32 on cpu and torch.float64"):
        mrl.nested_knn(BANK, QUERIES.double(), [2])
    with pytest.raises(TypeError, match="bank must be a floating-point .*, got torch.int64"):
        mrl.nested_knn(BANK.long(), QUERIES, [2])
    with pytest.raises(TypeError, match="queries must be a floating-point .*, got list"):
        mrl.nested_knn(BANK, [[1.0]], [2])


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_named(metric: str, value: float) -> None:
    bank = BANK.clone()
    bank[5, 3] = value
    mrl.nested_knn(bank, QUERIES, [2, 3], metric=metric)  # that column is not read
    with pytest.raises(ValueError, match=r"bank row 5 \(granularity 4\) has NaN or infinite"):
        mrl.nested_knn(bank, QUERIES, [2, 4], metric=metric)


def test_zero_prefix_is_named() -> None:
    queries = QUERIES.clone()
    queries[2, :2] = 0
    with pytest.raises(ValueError, match="queries row 2 is all zeros in its first 2 columns"):
        mrl.nested_knn(BANK, queries, [2, 4])
    mrl.nested_knn(BANK, queries, [2, 4], metric="l2")
    mrl.nested_knn(BANK, queries, [3, 4])

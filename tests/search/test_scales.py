"""Whatever the scale of rows and prefixes: searches find what sums without overflow find."""

import pytest
import torch
from any_scale import EXPONENTS, assert_nearest, at_scales
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mrl
from mrl.search import candidates, funnel_search, knn, rerank, scan, sharded_knn
from mrl.search.distances import scores_of_differences, squared_distances
from mrl.search.scan_plan import ScanPlan

METRICS = pytest.mark.parametrize("metric", ["cosine", "l2"])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@st.composite
def sets(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """A bank and queries: of one scale or of several, by rows or columns; twins, zeros."""
    dtype = draw(st.sampled_from(list(EXPONENTS)))
    exponents = st.integers(*EXPONENTS[dtype])
    size, count, embed_dim = draw(st.sampled_from([1, 6, 30])), 3, draw(st.integers(1, 20))
    seed = draw(st.integers(0, 9999))
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor(draw(st.lists(exponents, min_size=1, max_size=3)))
    exponent = scales[torch.randint(len(scales), (size + count, 1), generator=generator)]
    exponent = exponent.repeat(1, embed_dim)
    narrow = draw(st.integers(0, embed_dim))
    exponent[:, :narrow] += draw(st.just(0) | exponents)
    rows = at_scales(exponent, dtype, seed)
    bank, queries = rows[:size], rows[size:]
    if draw(st.booleans()):
        bank[torch.randint(size, (size // 2,), generator=generator)] = bank[-1].clone()
    if draw(st.booleans()):  # equal in float32 and narrower types
        near = 1 + 1e-9 * torch.rand(size // 2, embed_dim, generator=generator, dtype=torch.float64)
        bank[: size // 2] = (bank[0] * near).to(dtype)
    if draw(st.booleans()):
        rows[
            torch.rand(len(rows), generator=generator) < 0.3, : draw(st.integers(0, embed_dim))
        ] = 0
    if draw(st.booleans()):
        queries[0] = bank[-1]
    return bank, queries


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_all_searches_equal_slow_sums(data: st.DataObject) -> None:
    bank, queries = data.draw(sets())
    metric = data.draw(st.sampled_from(["cosine", "l2"]))
    widths = sorted(data.draw(st.sets(st.integers(1, bank.shape[1]), min_size=1, max_size=4)))
    k = data.draw(st.integers(1, len(bank)))
    start = data.draw(st.none() | st.integers(1, widths[-1]).filter(lambda m: m < widths[-1]))
    plan = ScanPlan(start, data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_BLOCK_ROWS", data.draw(st.sampled_from([7, 2048])))
        patch.setattr(candidates, "_MAX_CANDIDATES", data.draw(st.sampled_from([3, 4096])))
        patch.setattr(
            knn,
            "choose_plan",
            lambda bank, queries, widths, *_: (
                plan if (plan.start or 0) < widths[-1] else ScanPlan(None, plan.bf16)
            ),
        )
        scores, indices = mrl.nested_knn(bank, queries, widths, k, metric, allow_zero=True)
        sharded = sharded_knn(bank, queries, widths, k, metric, allow_zero=True)
    for g, m in enumerate(widths):
        assert_nearest(bank[:, :m], queries[:, :m], metric, scores[g], indices[g])
        assert_nearest(bank[:, :m], queries[:, :m], metric, sharded[0][g], sharded[1][g])
    everything = torch.arange(len(bank)).flip(0).expand(len(queries), -1)
    reranked = rerank(bank, queries, everything, widths[-1], k, metric=metric, allow_zero=True)
    assert_nearest(bank[:, : widths[-1]], queries[:, : widths[-1]], metric, *reranked)
    lists = [len(bank)] * (len(widths) - 1)
    funnel = funnel_search(bank, queries, widths, lists, k, metric=metric, allow_zero=True)
    assert_nearest(bank[:, : widths[-1]], queries[:, : widths[-1]], metric, *funnel)


@METRICS
@pytest.mark.parametrize("width", [1, 2, 8, 16, 17])
@pytest.mark.parametrize("k", [1, 4])
def test_float64_rows_that_are_equal_in_float32(metric: str, width: int, k: int) -> None:
    bank = normal(1, width) + 1e-9 * normal(300, width, seed=1)
    bank[150:] = bank[:150]  # these are equal
    queries = bank.mean(0) + 1e-9 * normal(9, width, seed=2)
    queries[5:] += normal(4, width, seed=3)
    scores, indices = mrl.nested_knn(bank, queries, [width], k, metric)
    assert_nearest(bank, queries, metric, scores[0], indices[0])


@METRICS
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-22, 1e-14, 1e18, 1e20, 1e30])
def test_a_bank_at_another_scale(metric: str, scale: float) -> None:
    bank, queries = normal(400, 32).float(), normal(6, 32, seed=1).float()
    scaled = scale * bank, scale * queries
    scores, indices = mrl.nested_knn(*scaled, [8, 32], 10, metric)
    for g, m in enumerate([8, 32]):
        assert_nearest(scaled[0][:, :m], scaled[1][:, :m], metric, scores[g], indices[g])


@METRICS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("power", [-20, 7])
def test_another_power_of_two_changes_no_bit(metric: str, dtype: torch.dtype, power: int) -> None:
    bank, queries = normal(2500, 24).to(dtype), normal(7, 24, seed=1).to(dtype)
    bank, queries = (x * (x.abs() > 0.1) for x in (bank, queries))  # exact in float16, too
    power = max(power, -10) if dtype == torch.float16 else power
    scores, indices = mrl.nested_knn(bank, queries, [4, 24], 5, metric)
    other = mrl.nested_knn(bank * 2.0**power, queries * 2.0**power, [4, 24], 5, metric)
    assert torch.equal(other[1], indices)
    assert torch.equal(other[0], scores if metric == "cosine" else scores * 4.0**power)


@pytest.mark.parametrize(
    ("narrow", "wide"), [(1e-30, 1.0), (1e-25, 1e25), (1e-38, 1e-18), (1e25, 1e-25), (1e20, 1e38)]
)
def test_each_prefix_has_its_own_direction(narrow: float, wide: float) -> None:
    bank = torch.tensor([[3.0, 4, 1, 0], [-3, 4, 0, 1], [1, 0, 1, 1]])
    queries = torch.tensor([[3.0, 4, 0, 1]])
    scale = torch.tensor([narrow, narrow, wide, wide])
    scores, indices = mrl.nested_knn(bank * scale, queries * scale, [2, 4], 3)
    assert indices[0].tolist() == [[0, 2, 1]]
    torch.testing.assert_close(scores[0], torch.tensor([[1.0, 0.6, 0.28]]))
    assert_nearest(bank * scale, queries * scale, "cosine", scores[1], indices[1])


def test_prefixes_of_several_scales_beside_usual_ones() -> None:
    bank = torch.tensor([[1.0, 0, 1, 1], [3e-25, 4e-25, 1e25, 1e25]])
    queries = torch.tensor([[3.0, 4, 0, 1]])
    scores, indices = mrl.nested_knn(bank, queries, [2, 4], 1)
    assert indices.tolist() == [[[1]], [[0]]]
    torch.testing.assert_close(scores, torch.tensor([[[1.0]], [[4 / (3 * 26) ** 0.5]]]))


def test_scales_that_grow_step_by_step() -> None:
    steps = torch.tensor([2e-23, 1e-11, 1.0, 1.0])
    bank = torch.tensor([[1.0, 0, 0, 0], [-1.0, 1, 0, 0], [1.0, 1, 1, 1e-4]]) * steps * 1e25
    queries = torch.tensor([[1.0, 1e-9, 0, 1]])
    scores, indices = mrl.nested_knn(bank, queries, [1, 2, 3, 4], 3)
    for g, m in enumerate([1, 2, 3, 4]):
        assert_nearest(bank[:, :m], queries[:, :m], "cosine", scores[g], indices[g])


@METRICS
@pytest.mark.parametrize("scale", [1e-19, 1e-21, 1e-22, 1e-23, 1e-30])
@pytest.mark.parametrize("long", ["bank", "queries", "both"])
def test_short_rows_beside_long_ones(metric: str, scale: float, long: str) -> None:
    bank, queries = scale * normal(300, 8).float(), scale * normal(20, 8, seed=1).float()
    if long != "queries":
        bank[::2] /= scale
    if long != "bank":
        queries[::2] /= scale
    scores, indices = mrl.nested_knn(bank, queries, [2, 8], 5, metric)
    for g, m in enumerate([2, 8]):
        assert_nearest(bank[:, :m], queries[:, :m], metric, scores[g], indices[g])


@pytest.mark.parametrize("start", [None, 2])
@pytest.mark.parametrize("scale", [1e-150, 1e-162, 1e-200, 1e-300])
def test_differences_whose_squares_vanish_in_float64(
    scale: float, start: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "choose_plan", lambda *_: ScanPlan(start, False))
    bank, queries = normal(200, 6), normal(8, 6, seed=1)
    bank[::2], queries[1:] = scale * bank[::2], scale * queries[1:]
    for found in (
        [part[0] for part in mrl.nested_knn(bank, queries, [6], 7, "l2")],
        rerank(bank, queries, torch.arange(200).expand(8, -1), 6, 7, metric="l2"),
    ):
        assert_nearest(bank, queries, "l2", *found)


def test_rerank_by_squares_beyond_float64() -> None:
    bank = torch.tensor([[1e200], [1e153], [1e155], [1e100], [1e-200]], dtype=torch.float64)
    for k in range(1, 6):
        _, indices = rerank(bank, 0 * bank[:1], torch.arange(5)[None], 1, k, metric="l2")
        assert indices.tolist() == [[4, 3, 1, 2, 0][:k]]


def test_only_zeros_are_zero() -> None:
    smallest = 5e-324
    bank = torch.tensor([[0.0, 0.0, 1.0], [smallest, 0.0, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="bank row 0 is all zeros in its first 2 columns"):
        mrl.nested_knn(bank, bank[1:], [2, 3], 2)
    mrl.nested_knn(bank[1:], bank[1:], [2, 3])
    scores, indices = mrl.nested_knn(bank, bank, [2], 2, allow_zero=True)
    assert indices.tolist() == [[[0, 1], [1, 0]]]
    assert scores.tolist() == [[[0.0, 0.0], [1.0, 0.0]]]


def test_squared_distances_beyond_the_dtype_keep_their_order() -> None:
    bank = torch.tensor([[3e30], [1e30], [2e30], [3e-30], [1e-30]])
    scores, indices = mrl.nested_knn(bank, torch.zeros(1, 1), [1], 5, "l2")
    assert indices.tolist() == [[[4, 3, 1, 2, 0]]]
    assert scores.tolist() == [[[0.0, 0.0, *[float("inf")] * 3]]]
    scores, _ = mrl.nested_knn(bank.double(), torch.zeros(1, 1).double(), [1], 5, "l2")
    torch.testing.assert_close(scores[0, 0], bank[indices[0, 0]].double().square()[:, 0])


def test_scores_keep_the_order_of_all_distances() -> None:
    distances = (2.0 ** torch.linspace(-1074, 1023.9, 5000, dtype=torch.float64)).unique()
    scores = scores_of_differences(distances[:, None])
    assert (scores[1:] < scores[:-1]).all() and torch.isfinite(scores).all()
    assert scores_of_differences(torch.zeros(1, 3).double()).item() == 0
    torch.testing.assert_close(squared_distances(scores), distances.square(), rtol=1e-14, atol=0)
    scaled = squared_distances(scores, 2.0**-900)
    torch.testing.assert_close(scaled, (distances * 2.0**-900).square(), rtol=1e-14, atol=0)


def test_distances_beyond_float64_are_equally_far() -> None:
    largest = torch.finfo(torch.float64).max
    bank = torch.tensor([[-largest], [0.0], [largest]], dtype=torch.float64)
    for k in (1, 3):
        scores, indices = mrl.nested_knn(bank, bank[2:], [1], k, "l2")
        assert indices.tolist() == [[[2, 0, 1][:k]]]
        assert scores.tolist() == [[[0.0, float("inf"), float("inf")][:k]]]

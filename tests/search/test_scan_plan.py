"""Whatever way a search takes through the bank, it finds what brute force finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from brute_force import brute_force
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mrl
from mrl.search import knn, scan, scan_plan
from mrl.search.candidates import CandidatePool
from mrl.search.refine import Survivors
from mrl.search.scan_plan import ScanPlan, choose_plan

PLANS = [
    ScanPlan(None, False),
    ScanPlan(None, True),
    ScanPlan(16, False),
    ScanPlan(32, True),
    ScanPlan(64, True),
]
D = 96


def clustered(count: int, seed: int, decay: float = 0.5, spread: float = 0.4) -> Tensor:
    """A dozen classes whose later columns vary less."""
    centres = torch.randn(12, D, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    z = centres[torch.arange(count) % 12] + spread * torch.randn(count, D, generator=generator)
    return z * torch.arange(1, D + 1).pow(-decay)


def use(monkeypatch: pytest.MonkeyPatch, plan: ScanPlan, *, rows: int = 150) -> None:
    monkeypatch.setattr(knn, "choose_plan", lambda *_: plan)
    monkeypatch.setattr(scan, "_BLOCK_ROWS", rows)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(
    ("k", "widths"),
    [(1, [8, 16, 32, 48, 96]), (10, [3, 96]), (400, [96]), (1, [*range(1, 97)]), (7, [70])],
)
def test_equals_brute_force(
    plan: ScanPlan, metric: str, k: int, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, plan)
    bank, queries = clustered(400, 0), clustered(23, 1)
    scores, indices = mrl.nested_knn(bank, queries, widths, k, metric)
    some = range(0, len(widths), 1 + len(widths) // 8)
    wanted_scores, wanted = brute_force(bank, queries, [widths[g] for g in some], k, metric)
    assert torch.equal(indices[list(some)], wanted)
    torch.testing.assert_close(scores[list(some)].double(), wanted_scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS[:3], ids=str)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("misled", [0, 3, 11])
def test_guessing_the_last_of_many_neighbours(
    plan: ScanPlan, metric: str, misled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, plan, rows=200)
    bank, queries = clustered(1200, 0), clustered(11, 1)
    queries[5] = queries[4] * 2
    if misled:  # the sample is nearer to these queries than the rest of the bank: too high a guess
        sampled = torch.arange(0, 1200, scan._SAMPLE)
        bank[sampled] = bank[0] + 1e-2 * bank[sampled]
        queries[:misled] = bank[0] + 1e-2 * queries[:misled]
    missed = []
    ranked = CandidatePool.ranked
    monkeypatch.setattr(
        CandidatePool, "ranked", lambda self: (found := ranked(self), missed.append(found[2]))[0]
    )
    scores, indices = mrl.nested_knn(bank, queries, [8, 32, 96], 70, metric)
    first = torch.stack([rows for rows in missed if len(rows) == len(queries)])
    assert first.any(0).sum() == misled
    wanted_scores, wanted = brute_force(bank, queries, [8, 32, 96], 70, metric)
    assert torch.equal(indices, wanted)
    torch.testing.assert_close(scores.double(), wanted_scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("plan", PLANS[2:], ids=str)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_refining_looks_at_few_pairs(
    plan: ScanPlan, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, plan)
    counts = []
    ranked = Survivors.ranked
    monkeypatch.setattr(
        Survivors, "ranked", lambda self: (counts.append(self.num_pairs), ranked(self))[1]
    )
    bank, queries = clustered(4000, 0, decay=1.0), clustered(20, 1, decay=1.0)
    _, indices = mrl.nested_knn(bank, queries, [96], 1, metric)
    assert torch.equal(indices, brute_force(bank, queries, [96], 1, metric)[1])
    assert 20 <= sum(counts) < 0.2 * bank.shape[0] * len(queries)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_zero_prefixes(plan: ScanPlan, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, plan)
    bank, queries = clustered(300, 0), clustered(9, 1)
    bank[[3, 150, 299], :64] = 0  # nothing before column 64
    bank[7] = 0
    queries[[0, 4], :64] = 0
    queries[8] = 0
    widths = [8, 32, 64, 96]
    _, indices = mrl.nested_knn(bank, queries, widths, 5, metric, allow_zero=True)
    assert torch.equal(indices, brute_force(bank, queries, widths, 5, metric)[1])


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 30])
def test_equal_rows_tie_by_lower_index(
    plan: ScanPlan, metric: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, plan, rows=40)
    distinct = clustered(5, 0)
    order = torch.randint(5, (200,), generator=torch.Generator().manual_seed(3))
    _, indices = mrl.nested_knn(distinct[order], distinct, [16, 40, 96], k, metric)
    wanted = torch.stack([(order == i).nonzero()[:k, 0] for i in range(5)])
    assert (indices == wanted).all()


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_too_many_survivors_are_scanned_after_all(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, ScanPlan(16, False))
    monkeypatch.setattr(scan, "_PAIR_BYTES", 2**20)
    monkeypatch.setattr(Survivors, "ranked", None)  # would fail if it were used
    bank, queries = clustered(500, 0), clustered(12, 1)
    _, indices = mrl.nested_knn(bank, queries, [8, 16, 48, 96], 3, metric)
    assert torch.equal(indices, brute_force(bank, queries, [8, 16, 48, 96], 3, metric)[1])


@settings(max_examples=20)
@given(st.data())
def test_plans_agree(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 999))
    widths = sorted({D, *data.draw(st.sets(st.integers(1, D), max_size=9))})
    k = data.draw(st.integers(1, 20))
    metric = data.draw(st.sampled_from(["cosine", "l2"]))
    decay = data.draw(st.floats(-1, 2))
    # Rows that differ by float32's last bit only have scores that float64 hardly tells apart.
    spread = data.draw(st.just(0.0) | st.floats(1e-3, 2))
    bank, queries = clustered(200, seed, decay, spread), clustered(5, seed + 1, decay, spread)
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for plan in PLANS:
            use(patch, plan, rows=64)
            results.append(mrl.nested_knn(bank, queries, widths, k, metric)[1])
    assert all(torch.equal(indices, results[0]) for indices in results[1:])


def test_what_is_chosen_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes in a few columns: narrow. Nothing but noise: no prefix says anything."""
    monkeypatch.setattr(scan_plan, "has_bf16", lambda device: False)
    bank, queries = clustered(20_000, 0, decay=2.0), clustered(40, 1, decay=2.0)
    plan = choose_plan(bank, queries, [8, 96], 1, "cosine")
    assert plan.start is not None
    noise = torch.randn(20_000, D, generator=torch.Generator().manual_seed(0))
    assert choose_plan(noise, noise[:40] + 1, [8, 96], 1, "cosine").start is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_memory_map_equals_memory(dtype: type, tmp_path: Path) -> None:
    bank, queries = clustered(3000, 0).numpy().astype(dtype), clustered(7, 1).numpy().astype(dtype)
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    found = mrl.nested_knn(mapped, queries, [8, 96], 4)
    wanted = mrl.nested_knn(torch.from_numpy(bank), torch.from_numpy(queries), [8, 96], 4)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    _, exact = brute_force(torch.from_numpy(bank), torch.from_numpy(queries), [8, 96], 4, "cosine")
    assert torch.equal(found[1], exact)


def test_little_memory_gives_the_same() -> None:
    bank, queries = clustered(5000, 0), clustered(300, 1)
    wanted = mrl.nested_knn(bank, queries, [8, 96], 50)
    found = mrl.nested_knn(bank, queries, [8, 96], 50, max_bytes=2**20)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])

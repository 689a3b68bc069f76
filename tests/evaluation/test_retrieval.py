"""Retrieval and truncation, against searches and metrics done one query at a time."""

import pytest
import torch
from torch import Tensor

from mrl.config import FunnelConfig, RetrievalConfig, TruncationConfig
from mrl.evaluation import retrieval, truncation
from mrl.evaluation.class_matching import ClassMatch, shared_labels
from mrl.evaluation.contract import UNLABELLED, Features, Widths
from mrl.evaluation.neighbours import neighbours
from mrl.row_names import parse_metric
from mrl.search.cost import Plan

WIDTHS = Widths(16, [2, 4, 16])


def features(count: int, seed: int, num_classes: int = 4) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, 16, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(num_classes, (count,), generator=generator)
    return Features(centres[labels] + torch.randn(count, 16, generator=generator), labels)


BANK, QUERIES = features(70, 0), features(13, 1)


def config(**changes: object) -> RetrievalConfig:
    values = {"shortlist": 20, "ks": [5, 10], "timed_queries": 0} | changes
    return RetrievalConfig(**values)  # type: ignore[arg-type]


def ranked(bank: Tensor, q: Tensor, candidates: list[int], m: int) -> list[int]:
    """The candidates by cosine of the first m columns."""
    score = torch.nn.functional.cosine_similarity(q[None, :m].double(), bank[:, :m].double())
    return sorted(candidates, key=lambda i: (-float(score[i]), i))


def searched(plan: Plan, bank: Features, q: Tensor, skip: int | None = None) -> list[int]:
    found = [i for i in range(len(bank)) if i != skip]
    for m, kept in zip(plan.dims, (*plan.shortlists, len(bank)), strict=True):
        found = ranked(bank.z, q, found, m)[:kept]
    return found


def average_precision(relevant: list[bool], k: int) -> float:
    """The paper's: divided by k."""
    return sum(sum(relevant[: i + 1]) / (i + 1) for i in range(k) if relevant[i]) / k


def all_scores(cfg: RetrievalConfig, queries: Features = QUERIES) -> dict[tuple[str, Plan], float]:
    scores = list(retrieval.run(BANK, queries, WIDTHS, cfg))
    assert all(score.n == len(queries) for score in scores)
    found = {parse_metric(s.metric, s.granularity): s.value for s in scores}
    assert len(found) == len(scores)
    return found


@pytest.mark.parametrize("own", [False, True], ids=["others", "leave-one-out"])
def test_the_grid_equals_a_loop(own: bool) -> None:
    queries = QUERIES
    if own:
        ids = torch.tensor([3, 0, 69])
        queries = Features(BANK.z[ids], BANK.labels[ids], ids=ids)
    funnel = FunnelConfig(dims=[2, 4, 16], shortlists=[20, 7])
    found = all_scores(config(funnels=[funnel]), queries)
    plans = [Plan((m,)) for m in (2, 4, 16)]
    plans += [Plan(pair, (20,)) for pair in ((2, 4), (2, 16), (4, 16))]
    plans.append(Plan((2, 4, 16), (20, 7)))
    assert {plan for _, plan in found} == set(plans)
    for plan in plans:
        ks = [5] if plan == plans[-1] else [5, 10]  # the funnel's list ends at 7
        assert {q for q, p in found if p == plan and q.startswith("mAP")} == {
            f"mAP@{k}{tail}" for k in ks for tail in ("", "_standard")
        }
        for k in ks:
            total = 0.0
            for i, (q, label) in enumerate(zip(queries.z, queries.labels, strict=True)):
                skip = int(queries.ids[i]) if queries.ids is not None else None
                hits = [bool(BANK.labels[j] == label) for j in searched(plan, BANK, q, skip)]
                total += average_precision(hits, k)
            assert found[f"mAP@{k}", plan] == pytest.approx(100 * total / len(queries))
        cost = plan.dims[0] * 70 + sum(
            n * m for n, m in zip(plan.shortlists, plan.dims[1:], strict=True)
        )
        assert found["MFLOPs/query", plan] == pytest.approx(cost / 1e6)


def test_time_is_measured_when_asked_for() -> None:
    scores = list(retrieval.run(BANK, QUERIES, WIDTHS, config(timed_queries=6)))
    times = [score for score in scores if score.metric.startswith("ms/query")]
    assert len(times) == 6 and all(score.value > 0 and score.n == 6 for score in times)
    assert not any(name == "ms/query" for name, _ in all_scores(config()))


def test_the_papers_funnels_where_the_widths_allow_them() -> None:
    r50 = Widths(2048, [8 * 2**i for i in range(9)])
    cfg = RetrievalConfig(shortlist=200, ks=[10, 25])
    plans = retrieval.plans_of(r50, cfg)
    assert Plan((16, 32, 64, 128, 256, 2048), (200, 100, 50, 25, 10)) in plans
    assert sum(len(plan.dims) == 1 for plan in plans) == 9
    assert sum(len(plan.dims) == 2 for plan in plans) == 36
    assert all(len(plan.dims) <= 2 for plan in retrieval.plans_of(WIDTHS, config()))
    one = retrieval.plans_of(Widths(16, [4]), config())  # FF: nothing to rank again by
    assert one == [Plan((4,))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shortlist": 71}, r"shortlist of 71 is more than the 70 neighbours.*evals\.retrieval"),
        ({"ks": [5, 71]}, r"evals\.retrieval\.ks=71 is more than the 70"),
        (
            {"funnels": [FunnelConfig(dims=[2, 32], shortlists=[9])]},
            r"width 32 of \[2, 32\] is above the embedding width 16",
        ),
    ],
    ids=["shortlist", "ks", "funnel"],
)
def test_refused_before_the_search(changes, message, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "neighbours", lambda *_: pytest.fail("searched"))
    with pytest.raises(ValueError, match=message):
        list(retrieval.run(BANK, QUERIES, WIDTHS, config(**changes)))


def test_inputs_stay_as_they_are() -> None:
    before = BANK.z.clone(), QUERIES.z.clone()
    all_scores(config())
    assert torch.equal(BANK.z, before[0]) and torch.equal(QUERIES.z, before[1])


def test_truncation_equals_a_loop() -> None:
    scores = list(truncation.run(BANK, QUERIES, Widths(16, [2, 8]), TruncationConfig(k=3)))
    found = {(s.metric, s.granularity): s.value for s in scores}
    assert {m for _, m in found} == {2, 8}  # the full width is the reference, not a granularity
    for m in (2, 8):
        cut, full = (
            [searched(Plan((width,)), BANK, q)[:3] for q in QUERIES.z] for width in (m, 16)
        )
        share = sum(len({*a} & {*b}) for a, b in zip(cut, full, strict=True)) / (3 * len(cut))
        assert found["neighbours@3", m] == pytest.approx(100 * share)
        hits = [
            [bool(BANK.labels[j] == y) for j in row]
            for row, y in zip(cut, QUERIES.labels, strict=True)
        ]
        assert found["top1_k1", m] == pytest.approx(100 * sum(h[0] for h in hits) / len(hits))
        mean = sum(average_precision(h, 3) for h in hits) / len(hits)
        assert found["mAP@3", m] == pytest.approx(100 * mean)
        assert found["bytes/item", m] == 4 * m


def test_truncation_needs_no_labels() -> None:
    bank, queries = (
        Features(f.z.half(), torch.full((len(f),), UNLABELLED)) for f in (BANK, QUERIES)
    )
    scores = list(truncation.run(bank, queries, WIDTHS, TruncationConfig(k=3)))
    assert {s.metric for s in scores} == {"bytes/item", "neighbours@3"}
    assert [s.value for s in scores if s.metric == "neighbours@3"][-1] == 100
    assert [s.value for s in scores if s.metric == "bytes/item"] == [4, 8, 32]
    with pytest.raises(ValueError, match=r"evals\.truncation\.k must lie in 1\.\.70"):
        list(truncation.run(bank, queries, WIDTHS, TruncationConfig(k=71)))


def test_no_query_is_its_own_neighbour_also_among_twins() -> None:
    z = torch.ones(6, 4)
    z[5] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    bank = Features(z, torch.zeros(6, dtype=torch.int64))
    queries = Features(z, bank.labels, ids=torch.arange(6))
    found = neighbours(bank, queries, [4], 2)[0]
    assert found.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]


def test_labels_through_class_folders() -> None:
    """Folder 0 means class 2 or 3, folder 1 class 0; class 1 is relevant to none."""
    match = ClassMatch(torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.bool))
    bank, queries = shared_labels(torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0]), match)
    assert (queries[:, None] == bank).tolist() == [
        [True, False, False, False],
        [False, False, True, True],
    ]
    twice = ClassMatch(torch.tensor([[1, 1], [0, 1]], dtype=torch.bool))
    with pytest.raises(ValueError, match="mean partly the same classes"):
        shared_labels(torch.tensor([0]), torch.tensor([0]), twice)
    same = ClassMatch(torch.tensor([[0, 1], [0, 1]], dtype=torch.bool))
    bank, queries = shared_labels(torch.tensor([0, 1]), torch.tensor([0, 1]), same)
    assert (queries[:, None] == bank).tolist() == [[False, True], [False, True]]

"""The evaluators on features whose answers are known."""

import pytest
import torch
from torch import Tensor

from mrl.config import (
    ClassifyConfig,
    InterpolationConfig,
    KnnConfig,
    RetrievalConfig,
    TruncationConfig,
)
from mrl.evaluation import classify, interpolation, knn, retrieval, truncation
from mrl.evaluation.contract import Features, Widths
from mrl.heads import NestedHead, TiedHead


def features(count: int, num_classes: int = 5, embed_dim: int = 16, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, embed_dim, generator=generator)
    return Features(z, torch.randint(num_classes, (count,), generator=generator))


BANK, QUERIES = features(60), features(21, seed=1)


def nearest_label(bank: Features, q: Tensor, m: int) -> int:
    similarity = torch.nn.functional.cosine_similarity(q[None, :m], bank.z[:, :m])
    return int(bank.labels[similarity.argmax()])


def test_classify_is_the_heads_own_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    head = NestedHead(16, 5, [2, 4, 16])
    monkeypatch.setattr(classify, "_CHUNK", 4)  # does not divide 21
    scores = list(classify.run(None, QUERIES, head, ClassifyConfig()))
    for score, (m, logits) in zip(scores, head(QUERIES.z).items(), strict=True):
        right = sum(int(a == b) for a, b in zip(logits.argmax(1), QUERIES.labels, strict=True))
        assert (score.metric, score.granularity, score.n) == ("top1", m, 21)
        assert score.value == pytest.approx(100 * right / 21)


def test_knn_at_every_granularity_for_every_k() -> None:
    head = NestedHead(16, 5, [2, 4, 16])
    scores = {
        (s.metric, s.granularity): s.value
        for s in knn.run(BANK, QUERIES, head, KnnConfig(k=[1, 5]))
    }
    assert set(scores) == {(f"top1_k{k}", m) for k in (1, 5) for m in (2, 4, 16)}
    for m in (2, 4, 16):
        right = [
            nearest_label(BANK, q, m) == y for q, y in zip(QUERIES.z, QUERIES.labels, strict=True)
        ]
        assert scores["top1_k1", m] == pytest.approx(100 * sum(right) / 21)


def test_fixed_feature_model_is_judged_at_its_one_width() -> None:
    head = NestedHead(16, 5, [4])
    assert [s.granularity for s in classify.run(None, QUERIES, head, ClassifyConfig())] == [4]
    assert [s.granularity for s in knn.run(BANK, QUERIES, head, KnnConfig(k=[1]))] == [4]
    cfg = InterpolationConfig(widths=[8])
    assert list(interpolation.run(BANK, QUERIES, head, cfg)) == []


@pytest.mark.parametrize(
    ("dtype", "powers"),
    [(torch.float32, [-100, -46, 0, 70]), (torch.float64, [-900, -46, 0, 900])],
)
def test_no_answer_depends_on_the_scale_of_embeddings(
    dtype: torch.dtype, powers: list[int]
) -> None:
    head = TiedHead(16, 5, [2, 4, 16])
    usual = [Features(part.z.to(dtype), part.labels) for part in (BANK, QUERIES)]
    scales = torch.tensor(powers, dtype=dtype).exp2()
    timeless = RetrievalConfig(shortlist=20, ks=[5, 10], timed_queries=0)

    def answers(bank: Features, queries: Features) -> list[float]:
        runs = [
            knn.run(bank, queries, head, KnnConfig(k=[1, 5])),
            knn.knn_scores(bank, queries, [3, 8], [1]),  # what interpolation asks
            retrieval.run(bank, queries, head, timeless),
            truncation.run(bank, queries, Widths(16, [2, 4, 16]), TruncationConfig(k=5)),
        ]
        return [score.value for run in runs for score in run]

    for shift in range(len(powers)):  # each row at a scale of its own
        scaled = []
        for part in usual:
            own = scales[(torch.arange(len(part)) + shift) % len(scales)]
            scaled.append(Features(part.z * own[:, None], part.labels))
        assert answers(*scaled) == answers(*usual)


def test_labels_above_2048_are_exact() -> None:
    """float16, which an earlier release stored labels in, holds integers up to 2048 only."""
    z = torch.eye(16)
    labels = torch.arange(16) + 100_000_001
    bank = Features(z, labels)
    wrong = Features(z, labels + torch.arange(16) % 2)
    head = NestedHead(16, 5, [16])
    assert next(iter(knn.run(bank, bank, head, KnnConfig(k=[1])))).value == 100
    assert next(iter(knn.run(bank, wrong, head, KnnConfig(k=[1])))).value == 50


@pytest.mark.parametrize(
    ("neighbours", "winner"),
    [
        ([7], 7),
        ([7, 3], 7),
        ([3, 7, 7], 7),
        ([9, 3, 7, 7, 3], 3),  # 3 and 7 are tied, 3 is nearer; 9, nearest of all, is not tied
        ([2**40, 1, 2**40, 1], 2**40),
        ([1, 2, 3, 4], 1),
    ],
)
def test_majority_vote(neighbours: list[int], winner: int) -> None:
    assert knn.majority_vote(torch.tensor([neighbours])).tolist() == [winner]


def test_majority_vote_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.randint(4, (50, 6))
    whole = knn.majority_vote(labels)
    monkeypatch.setattr(knn, "_VOTE_BYTES", 36 * 7)
    assert torch.equal(knn.majority_vote(labels), whole)


@pytest.mark.parametrize(
    ("k", "message"), [([], "got"), ([0], "got"), ([1, 1], "different"), ([61], "60 neighbours")]
)
def test_bad_k(k: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=rf"evals\.knn\.k.*{message}"):
        list(knn.run(BANK, QUERIES, NestedHead(16, 5, [4]), KnnConfig(k=k)))


def test_zero_embeddings_are_judged_with_a_warning() -> None:
    z = QUERIES.z.clone()
    z[3, :2] = 0
    queries = Features(z, QUERIES.labels)
    with pytest.warns(UserWarning, match="1 of 21 embeddings are zero in their first 2 entries"):
        scores = list(knn.knn_scores(BANK, queries, [2, 16], [1]))
    assert len(scores) == 2


def test_midpoints() -> None:
    assert interpolation.midpoints([2, 4, 8]) == [3, 6]
    assert interpolation.midpoints([1, 2, 3]) == []
    assert interpolation.midpoints([8]) == []


def test_interpolation_of_mrl_is_1nn_at_untrained_widths_only() -> None:
    head = NestedHead(16, 5, [2, 4, 16])
    scores = list(interpolation.run(BANK, QUERIES, head, InterpolationConfig()))
    assert [(s.metric, s.granularity) for s in scores] == [("top1_k1", 3), ("top1_k1", 8)]
    asked = interpolation.untrained_widths([2, 4, 16], 16, [16, 5, 4, 5])
    assert asked == [5]


def test_interpolation_of_mrl_e_slices_its_weight() -> None:
    head = TiedHead(16, 5, [2, 4, 16])
    scores = list(interpolation.run(BANK, QUERIES, head, InterpolationConfig(widths=[7])))
    assert [(s.metric, s.granularity) for s in scores] == [("top1", 7), ("top1_k1", 7)]
    logits = QUERIES.z[:, :7] @ head.weight[:, :7].T + head.bias
    right = (logits.argmax(1) == QUERIES.labels).sum()
    assert scores[0].value == pytest.approx(100 * int(right) / 21)


@pytest.mark.parametrize("kind", [NestedHead, TiedHead], ids=["MRL", "MRL-E"])
def test_every_width_in_one_pass(kind: type[NestedHead] | type[TiedHead]) -> None:
    head = kind(16, 5, [2, 4, 16])
    scores = list(interpolation.run(BANK, QUERIES, head, InterpolationConfig(widths="all")))
    found = {(s.metric, s.granularity): s.value for s in scores}
    metrics = ["top1_k1"] if kind is NestedHead else ["top1", "top1_k1"]
    assert set(found) == {(metric, m) for metric in metrics for m in range(1, 17)}
    for m in range(1, 17):
        pairs = list(zip(QUERIES.z, QUERIES.labels, strict=True))
        near = sum(nearest_label(BANK, q, m) == y for q, y in pairs)
        assert found["top1_k1", m] == pytest.approx(100 * near / 21)
        if isinstance(head, TiedHead):
            right = (head.logits_at(QUERIES.z, m).argmax(1) == QUERIES.labels).sum()
            assert found["top1", m] == pytest.approx(100 * int(right) / 21)


def test_a_query_of_the_bank_is_not_its_own_neighbour() -> None:
    ids = torch.tensor([5, 17, 40])
    queries = Features(BANK.z[ids], BANK.labels[ids], ids=ids)
    (score,) = knn.knn_scores(BANK, queries, [16], [1])
    right = 0
    for i in ids.tolist():
        rest = torch.arange(60) != i
        others = Features(BANK.z[rest], BANK.labels[rest])
        right += nearest_label(others, BANK.z[i], 16) == int(BANK.labels[i])
    assert score.value == pytest.approx(100 * right / 3)
    with pytest.raises(ValueError, match="60 is more than the 59 neighbours"):
        list(knn.knn_scores(BANK, queries, [16], [60]))


@pytest.mark.parametrize("width", [1, 17])
def test_widths_outside_are_refused(width: int) -> None:
    with pytest.raises(ValueError, match=rf"\[{width}\] lie outside 2\.\.16"):
        interpolation.untrained_widths([2, 4, 16], 16, [3, width])


def test_features_keep_labels_as_integers() -> None:
    with pytest.raises(TypeError, match="labels must be int64"):
        Features(torch.zeros(2, 3), torch.zeros(2, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"need embeddings .* got \(2, 3\) and \(3,\)"):
        Features(torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64))

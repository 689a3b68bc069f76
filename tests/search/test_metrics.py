"""The retrieval metrics against slow loops and cases worked by hand."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mrl
from mrl.search import list_checks, metrics
from mrl.search.metrics import (
    metrics_of_relevance,
    neighbour_recall,
    relevance,
    retrieval_metrics,
)


def slow_metrics(indices, query_labels, bank_labels, ks, query_ids=None):
    """One query at a time, straight from the definitions."""
    values = {}
    for q, label in enumerate(query_labels):
        own = query_ids[q] if query_ids is not None else -1
        found = [i for i in indices[q] if own < 0 or i != own]
        wanted = {i for i, other in enumerate(bank_labels) if other == label and i != own}
        hit = [i in wanted for i in found]
        row = {"top1": float(hit[0])}
        for k in ks:
            sum_of_precisions = sum(sum(hit[:i]) / i for i in range(1, k + 1) if hit[i - 1])
            row[f"top{k}"] = float(any(hit[:k]))
            row[f"P@{k}"] = sum(hit[:k]) / k
            row[f"recall@{k}"] = sum(hit[:k]) / len(wanted) if wanted else 0.0
            row[f"mAP@{k}"] = sum_of_precisions / k
            row[f"mAP@{k}_standard"] = sum_of_precisions / (min(k, len(wanted)) or 1)
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return {name: sum(v) / len(v) for name, v in values.items()}


@st.composite
def searches(draw, in_bank):
    """Lists that hold anything of the bank, labels of which some have no item there."""
    num_items = draw(st.integers(3, 12))
    bank_labels = draw(st.lists(st.integers(-2, 3), min_size=num_items, max_size=num_items))
    num_queries = draw(st.integers(1, 6))
    size = draw(st.integers(2, num_items))
    indices = [draw(st.permutations(range(num_items)))[:size] for _ in range(num_queries)]
    for row in indices:
        row[draw(st.integers(0, size)) :] = []
        row += [-1] * (size - len(row))
    labels = draw(st.lists(st.integers(-2, 4), min_size=num_queries, max_size=num_queries))
    ids = None
    if in_bank:
        items = st.integers(-1, num_items - 1)
        ids = draw(st.lists(items, min_size=num_queries, max_size=num_queries))
        labels = [bank_labels[i] if i >= 0 else y for i, y in zip(ids, labels, strict=True)]
    longest = size - 1 if in_bank else size
    ks = draw(st.lists(st.integers(1, longest), min_size=1, max_size=3, unique=True))
    return indices, labels, bank_labels, ks, ids


@pytest.mark.parametrize("in_bank", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 2**20])
def test_equal_to_a_slow_loop(in_bank, chunk):
    compared = []

    @settings(max_examples=50, deadline=None)
    @given(searches(in_bank))
    def check(search):
        indices, labels, bank_labels, ks, ids = search
        wanted = slow_metrics(indices, labels, bank_labels, ks, ids)
        pairs = zip(labels, ids or [-1] * len(labels), strict=True)
        if not any(bank_labels.count(y) > (i >= 0) for y, i in pairs):
            with pytest.raises(ValueError, match="has a relevant item"):
                retrieval_metrics(indices, labels, bank_labels, ks, ids)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = retrieval_metrics(indices, labels, bank_labels, ks, ids)
        assert got == pytest.approx(wanted, abs=1e-12)
        assert set(got) == set(wanted)
        compared.append(got["top1"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_CHUNK", chunk)
        patch.setattr(list_checks, "_CHUNK", chunk)
        check()
    assert len(compared) > 10
    assert len(set(compared)) > 1


def test_equal_to_a_slow_loop_at_the_papers_lengths():
    generator = torch.Generator().manual_seed(0)
    bank_labels = torch.randint(7, (400,), generator=generator)
    labels = torch.randint(7, (30,), generator=generator)
    indices = torch.rand(30, 400, generator=generator).argsort(1)[:, :200]
    got = retrieval_metrics(indices, labels, bank_labels)
    lists = indices.tolist(), labels.tolist(), bank_labels.tolist()
    assert got == pytest.approx(slow_metrics(*lists, [10, 25, 50, 100]), abs=1e-12)
    assert list(got)[:6] == ["top1", "top10", "P@10", "recall@10", "mAP@10", "mAP@10_standard"]


def test_both_average_precisions_by_hand():
    """Relevant items: 0, 1, 2. Found at places 1 and 3 of 5: precisions 1 and 2/3 there."""
    got = retrieval_metrics([[0, 3, 2, 4, 5]], [7], [7, 7, 7, 1, 1, 1], ks=[2, 5])
    assert got == pytest.approx(
        {
            "top1": 1,
            "top2": 1,
            "P@2": 1 / 2,
            "recall@2": 1 / 3,
            "mAP@2": 1 / 2,
            "mAP@2_standard": 1 / 2,  # min(k, relevant) is k here
            "top5": 1,
            "P@5": 2 / 5,
            "recall@5": 2 / 3,
            "mAP@5": (1 + 2 / 3) / 5,
            "mAP@5_standard": (1 + 2 / 3) / 3,
        }
    )


def test_average_precision_punishes_late_hits():
    labels = [0, 0, 1, 1]
    first = retrieval_metrics([[0, 1, 2, 3]], [0], labels, ks=[4])
    last = retrieval_metrics([[2, 3, 0, 1]], [0], labels, ks=[4])
    assert (first["mAP@4"], first["mAP@4_standard"]) == (0.5, 1.0)
    assert last["mAP@4"] == pytest.approx((1 / 3 + 2 / 4) / 4)
    assert last["mAP@4_standard"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert (first["top1"], last["top1"], last["top4"]) == (1, 0, 1)


def test_recall_counts_each_class_in_the_bank():
    """Class 0 has four items, class 1 has one: a constant would give neither 1/4 nor 1."""
    got = retrieval_metrics([[0, 4], [4, 0]], [0, 1], [0, 0, 0, 0, 1], ks=[2])
    assert got["recall@2"] == pytest.approx((1 / 4 + 1) / 2)


def test_a_query_in_the_bank_is_no_answer_to_itself():
    labels = [5, 5, 5, 6]
    got = retrieval_metrics([[1, 3, 0], [3, 2, 1]], [5, 5], labels, [2], query_ids=[1, -1])
    # The first query: list [3, 0], two relevant items. The second: [3, 2], three.
    assert got["top1"] == 0
    assert got["P@2"] == pytest.approx(1 / 2)
    assert got["recall@2"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert got["mAP@2"] == pytest.approx(1 / 4)


def test_leave_one_out_through_the_search():
    z = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    labels, ids = torch.arange(40) % 3, torch.arange(40)
    _, indices = mrl.nested_knn(z, z, [8], k=11)
    assert retrieval_metrics(indices[0], labels, labels, [10])["top1"] == 1
    got = retrieval_metrics(indices[0], labels, labels, [10], query_ids=ids)
    without_self = torch.stack([row[row != i] for i, row in enumerate(indices[0])])
    assert without_self.shape == (40, 10)
    again = retrieval_metrics(without_self, labels, labels, [10], query_ids=ids)
    assert got == again
    assert got["top1"] < 1


def test_places_without_a_find_are_not_relevant():
    """-1 would be the last item of the bank in plain indexing, which has the query's label."""
    labels = [3, 1, 3]
    assert relevance([[0, -1, 1]], [3], labels).tolist() == [[True, False, False]]
    got = retrieval_metrics([[0, -1, -1]], [3], labels, ks=[3])
    assert (got["P@3"], got["recall@3"]) == (pytest.approx(1 / 3), 0.5)


def test_a_query_outside_the_bank_keeps_its_whole_list():
    """Its id is -1, and so are the places where nothing was found."""
    lists, labels = [[0, -1, 2]], [3, 1, 3]
    got = retrieval_metrics(lists, [3], labels, [3], query_ids=[-1])
    assert got == retrieval_metrics(lists, [3], labels, [3])
    assert got["mAP@3"] == pytest.approx((1 + 2 / 3) / 3)


def test_queries_without_a_relevant_item_count_zero():
    arguments = [[0, 1], [0, 1]], [4, 9], [4, 4]
    with pytest.warns(UserWarning, match="1 of 2 queries have no relevant item"):
        got = retrieval_metrics(*arguments, ks=[2])
    assert set(got.values()) == {0.5}
    with pytest.raises(ValueError, match="none of the 2 queries has a relevant item"):
        retrieval_metrics([[0, 1], [0, 1]], [8, 9], [4, 4], ks=[2])
    with pytest.raises(ValueError, match="none of the 2 queries"):  # all different: only itself
        retrieval_metrics([[0, 1], [1, 0]], [4, 5], [4, 5], ks=[1], query_ids=[0, 1])


def test_class_numbers_that_float16_cannot_hold():
    """2049 is 2048 in float16, and 4201 is 4200: classes that ImageNet-4K has."""
    bank_labels = torch.tensor([2048, 2049, 4200, 4201, 2**40, 2**40 + 1])
    labels = bank_labels[[1, 3, 5]]
    indices = torch.arange(6).expand(3, 6)
    wanted = torch.zeros(3, 6, dtype=torch.bool)
    wanted[[0, 1, 2], [1, 3, 5]] = True
    assert torch.equal(relevance(indices, labels, bank_labels), wanted)
    assert retrieval_metrics(indices, labels, bank_labels, ks=[1, 6])["recall@6"] == 1


def test_several_relevant_classes():
    relevant = torch.tensor([[True, False, True], [False, False, False]])
    got = metrics_of_relevance(relevant, torch.tensor([4, 2]), ks=[3])
    assert got["recall@3"] == pytest.approx(2 / 4 / 2)
    assert got["mAP@3_standard"] == pytest.approx((1 + 2 / 3) / 3 / 2)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_neighbour_recall_equals_sets(data):
    items = st.integers(0, 9)
    num_queries, k = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    exact = [
        data.draw(st.lists(items, min_size=k, max_size=k, unique=True)) for _ in range(num_queries)
    ]
    size = data.draw(st.integers(1, 7))
    lists = st.lists(items | st.just(-1), min_size=size, max_size=size)
    found = [data.draw(lists) for _ in range(num_queries)]
    wanted = sum(len(set(a) & set(b)) for a, b in zip(found, exact, strict=True))
    assert neighbour_recall(found, exact) == pytest.approx(wanted / (num_queries * k))


def test_neighbour_recall_by_hand():
    exact = torch.tensor([[1, 2], [3, 4]])
    assert neighbour_recall(exact.flip(1), exact) == 1
    assert neighbour_recall([[2, 9], [-1, -1]], exact) == 0.25

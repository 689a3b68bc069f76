"""What the retrieval metrics take, and what they refuse."""

import warnings

import numpy as np
import pytest
import torch

from mrl.search import list_checks
from mrl.search.metrics import metrics_of_relevance, neighbour_recall, retrieval_metrics


@pytest.mark.parametrize("kind", ["int16", "uint8", "int32", "memmap", "torch", "reversed"])
def test_any_kind_of_integers(kind, tmp_path):
    indices, labels, bank_labels = [[2, 0], [1, 2]], [1, 2], [1, 2, 1]
    wanted = retrieval_metrics(indices, labels, bank_labels, ks=[1, 2])
    bank = np.array(bank_labels)
    if kind == "memmap":
        np.save(tmp_path / "labels.npy", bank)
        bank = np.load(tmp_path / "labels.npy", mmap_mode="r")
    elif kind == "reversed":
        bank = bank[::-1]  # the same backwards, too
    else:
        bank = torch.tensor(bank_labels) if kind == "torch" else bank.astype(kind)
    before = bank.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert retrieval_metrics(np.array(indices), labels, bank, ks=[1, 2]) == wanted
    assert bank.tolist() == before


@pytest.mark.parametrize("query_kind", ["int64", "uint64"])
@pytest.mark.parametrize("bank_kind", ["int64", "uint64"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_labels_above_what_floats_hold_are_compared_exactly(query_kind, bank_kind, as_tensor):
    labels, bank = np.array([2**60 + 1], query_kind), np.array([2**60, 2**60 + 1], bank_kind)
    if as_tensor:
        labels, bank = torch.from_numpy(labels), torch.from_numpy(bank)
    assert retrieval_metrics([[0, 1]], labels, bank, ks=[1, 2])["mAP@2_standard"] == 0.5


@pytest.mark.parametrize("make", [np.array, lambda x, kind: torch.from_numpy(np.array(x, kind))])
def test_labels_above_int64_are_refused_and_equal_no_negative_ones(make):
    with pytest.raises(ValueError, match="bank_labels must be at most 9223372036854775807"):
        retrieval_metrics([[0, 1]], [-1], make([2**64 - 1, 5], "uint64"), ks=[1])


def test_inputs_are_unchanged():
    indices = torch.tensor([[1, 0, 2], [2, 1, -1]])
    labels = torch.tensor([0, 1, 1, 0])
    before = indices.clone(), labels.clone()
    retrieval_metrics(indices, labels[:2], labels, [1], query_ids=[0, -1])
    neighbour_recall(indices, indices.clamp(min=0))
    assert torch.equal(indices, before[0])
    assert torch.equal(labels, before[1])


LISTS = [[0, 1, 2], [2, 1, 0]]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query_labels": None}, ValueError, "query_labels are missing"),
        ({"bank_labels": None}, ValueError, "bank_labels are missing"),
        ({"query_labels": [0]}, ValueError, "1 query_labels for 2 lists"),
        ({"query_labels": [0.0, 1.0]}, TypeError, "query_labels must be integers, got float64"),
        ({"bank_labels": torch.ones(3)}, TypeError, "bank_labels must be integers, got .*float32"),
        ({"bank_labels": torch.ones(3).bool()}, TypeError, "bank_labels must be .* got .*bool"),
        ({"bank_labels": ["cat", "dog", "cat"]}, TypeError, "bank_labels must be integers, got <U"),
        ({"bank_labels": [[0], [1], [0]]}, ValueError, r"bank_labels must be one .* \(3, 1\)"),
        ({"bank_labels": [0, 1]}, ValueError, r"query 0 has neighbour 2, .* items 0\.\.1"),
        ({"bank_labels": torch.zeros(0).long()}, ValueError, "metrics need .* 0 bank_labels"),
        ({"indices": [[0, 1, 2], [2, 1, -2]]}, ValueError, "query 1 has neighbour -2"),
        ({"indices": [[0, 1, 2], [2, 1, 2]]}, ValueError, "query 1 has item 2 twice"),
        ({"indices": torch.zeros(2, 3)}, TypeError, "indices must be integers"),
        ({"indices": [0, 1]}, ValueError, r"indices must be \(queries, neighbours\)"),
        ({"indices": torch.zeros(2, 0).long()}, ValueError, "metrics need a query, a neighbour"),
        ({"ks": [1, 4]}, ValueError, "lists of 3 neighbours cannot be judged at k=4"),
        ({"ks": [0]}, ValueError, r"ks must be different positive numbers, got \[0\]"),
        ({"ks": []}, ValueError, r"ks must be different positive numbers, got \[\]"),
        ({"ks": [2, 2]}, ValueError, "ks must be different"),
        ({"query_ids": [0]}, ValueError, "1 query_ids for 2 queries"),
        ({"query_ids": [0, 3]}, ValueError, r"query_ids\[1\]=3 is no item of the bank"),
        ({"query_ids": [0, -2]}, ValueError, r"query_ids\[1\]=-2 is no item"),
        ({"query_ids": [0, 2]}, ValueError, "query 1 is item 2 .* labels differ: 1 and 0"),
        ({"query_ids": [0, -1], "ks": [3]}, ValueError, "leave 2, fewer than k=3: .* least 4"),
    ],
)
def test_bad_input(change, error, message):
    good = {"indices": LISTS, "query_labels": [0, 1], "bank_labels": [0, 1, 0], "ks": [1, 2]}
    retrieval_metrics(**good)
    with pytest.raises(error, match=message):
        retrieval_metrics(**{**good, **change})


def test_the_query_at_fault_is_named_in_later_blocks_too(monkeypatch):
    monkeypatch.setattr(list_checks, "_CHUNK", 4)  # two queries of two neighbours
    with pytest.raises(ValueError, match="query 3 has item 1 twice"):
        retrieval_metrics([[0, 1], [1, 0], [0, 1], [1, 1]], [5] * 4, [5, 5], [2])


def test_self_twice_in_a_list_is_refused():
    with pytest.raises(ValueError, match="query 0 has item 0 twice"):
        retrieval_metrics([[0, 0, 1, 2]], [5], [5, 5, 6], [2], query_ids=[0])


def test_bad_relevance():
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
        metrics_of_relevance(torch.ones(2, 3).bool(), torch.ones(3).long(), [1])
    with pytest.raises(ValueError, match="lists of 3 neighbours"):
        metrics_of_relevance(torch.ones(2, 3).bool(), torch.ones(2).long())


def test_neighbour_recall_of_bad_input():
    with pytest.raises(ValueError, match=r"as many queries .* \(1, 2\) and \(2, 1\)"):
        neighbour_recall([[1, 2]], [[1], [2]])
    with pytest.raises(ValueError, match="places below 0"):
        neighbour_recall([[1, 2]], [[1, -1]])
    with pytest.raises(TypeError, match="exact must be integers"):
        neighbour_recall([[1, 2]], [[1.0, 2.0]])

"""Labels of several sets, of whatever types, are equal where they are the same."""

import numpy as np
import pytest

from mrl.evaluation.contract import UNLABELLED
from mrl.evaluation.labels import numbered

LARGE = 2**60  # in float64, so is LARGE + 1


@pytest.mark.parametrize("bank", ["int64", "uint64", ">i8"])
@pytest.mark.parametrize("queries", ["int64", "uint64", ">u8"])
def test_integers_of_different_types_meet_exactly(bank: str, queries: str) -> None:
    ids = [LARGE + 2, LARGE, LARGE + 1]
    sets = [np.array(ids, bank), np.array(ids[::-1], queries)]
    assert [part.tolist() for part in numbered(sets, [3, 3])] == [[2, 0, 1], [1, 0, 2]]


def test_small_types_and_the_largest_number_meet() -> None:
    sets = [np.array([127, 0], np.int8), np.array([2**64 - 1, 127], np.uint64)]
    assert [part.tolist() for part in numbered(sets, [2, 2])] == [[1, 0], [2, 1]]


def test_words_meet_whatever_their_lengths_and_ends() -> None:
    sets = [
        np.array(["a", "a ", "A", "007"]),
        np.array(["7", "a\0", "a", "abcdefgh"], dtype=object),
    ]
    bank, queries = numbered(sets, [4, 4])
    shared = [(b, q) for b in range(4) for q in range(4) if bank[b] == queries[q]]
    assert shared == [(0, 2)]
    assert len({*bank.tolist(), *queries.tolist()}) == 7


def test_no_labels_and_labels_of_two_kinds() -> None:
    none = [part.tolist() for part in numbered([None, None], [1, 2])]
    assert none == [[UNLABELLED], [UNLABELLED] * 2]
    with pytest.raises(ValueError, match="both be integers or both strings"):
        numbered([np.array([1]), np.array(["1"])], [1, 1])


def test_words_that_look_the_same_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'cafe\\u0301' and 'caf\\xe9' look the same"):
        numbered([np.array(["cafe\u0301", "b"]), np.array(["caf\xe9"])], [2, 1])


def test_a_byte_order_mark_makes_no_class() -> None:
    with pytest.raises(ValueError, match="begin with a byte order mark"):
        numbered([np.array(["\ufeffcat", "dog"]), np.array(["cat"])], [2, 1])

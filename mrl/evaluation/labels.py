"""Labels of several sets, integers or words of any type, as numbers that can be compared.

Shapes: N items.
"""

from unicodedata import normalize

import numpy as np
import torch
from torch import Tensor

from mrl.evaluation.contract import UNLABELLED


def numbered(names: list[np.ndarray | None], sizes: list[int]) -> list[Tensor]:
    """Labels as int64, numbered over all sets together; ``UNLABELLED`` if there are none.

    Raises:
        ValueError: if some are integers and others strings.
    """
    given = [labels for labels in names if labels is not None]
    if not given:
        return [torch.full((size,), UNLABELLED) for size in sizes]
    kinds = {labels.dtype.kind in "iu" for labels in given}
    if len(kinds) > 1:
        raise ValueError("labels and query_labels must both be integers or both strings")
    numbers = _integer_places(given) if kinds == {True} else _word_places(given)
    return list(torch.from_numpy(numbers).split(sizes))


def _integer_places(labels: list[np.ndarray]) -> np.ndarray:
    """The place of each label in the sorted list of all, as int64.

    None is negative, so uint64 holds them all; int64 and uint64 would meet in float64, in which
    neighbours above 2**53 are equal.
    """
    joined = np.concatenate([part.astype(np.uint64) for part in labels])
    return np.unique(joined, return_inverse=True)[1].astype(np.int64)


def _word_places(labels: list[np.ndarray]) -> np.ndarray:
    """The place of each label in the sorted list of all, as int64.

    Raises:
        ValueError: if two of them differ in nothing but their Unicode form or a byte order mark.
    """
    words = [word for part in labels for word in part.tolist()]
    places = {word: place for place, word in enumerate(sorted(set(words)))}
    composed: dict[str, str] = {}
    for word in places:
        other = composed.setdefault(normalize("NFC", word.removeprefix("\ufeff")), word)
        if other != word:
            raise ValueError(
                f"the labels {other!a} and {word!a} look the same and are different Unicode "
                "letters, or begin with a byte order mark: write all of them in one form "
                "(unicodedata.normalize)"
            )
    return np.fromiter((places[word] for word in words), np.int64, len(words))

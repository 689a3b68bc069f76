"""The same item twice: as a query and in the bank, or twice in the bank.

Shapes: N rows, B bank, Q queries, D embedding width.
"""

from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch import Tensor

from mrl.nesting import unit

_CHUNK_BYTES = 16 * 2**20  # looked at in one go
_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}  # by their bytes


def same_items(a_ND: Tensor, b_ND: Tensor) -> bool:
    """Whether two sets are the same items in the same order, though perhaps of another length.

    It looks no further than it needs to.
    """
    if a_ND.shape != b_ND.shape:
        return False
    return all(_same_directions(a, b) for a, b in zip(_chunks(a_ND), _chunks(b_ND), strict=True))


def num_in_bank(bank_BD: Tensor, queries_QD: Tensor) -> int:
    """How many of the queries are, bit for bit, rows of the bank."""
    sums_B, sums_Q = _bit_sums(bank_BD), _bit_sums(queries_QD)
    known = set(_digests(bank_BD, torch.isin(sums_B, sums_Q)))
    return sum(digest in known for digest in _digests(queries_QD, torch.isin(sums_Q, sums_B)))


def num_twins(bank_BD: Tensor) -> int:
    """How many rows of the bank are, bit for bit, another row of it, too."""
    _, place_B, counts = _bit_sums(bank_BD).unique(return_inverse=True, return_counts=True)
    found = Counter(_digests(bank_BD, counts[place_B] > 1))
    return sum(count for count in found.values() if count > 1)


def _same_directions(a_ND: Tensor, b_ND: Tensor) -> bool:
    """Whether rows that differ, if any do, differ by no more than rounding once they are scaled."""
    if torch.equal(a_ND, b_ND):
        return True
    unit_a_ND, unit_b_ND = (unit(z_ND.double()) for z_ND in (a_ND, b_ND))
    eps = torch.finfo(a_ND.dtype).eps
    return torch.allclose(unit_a_ND, unit_b_ND, rtol=2 * eps, atol=1e-4 * eps)


def _bit_sums(z_ND: Tensor) -> Tensor:
    """A number (N,) for each row, equal for equal rows and, but for rare accidents, for no others.

    It is the sum of the row's bits, read as the longest integers that they make: exact, whatever
    the order of summing, and 20 times as fast with int64 as with int32.
    """
    row_bytes = z_ND.shape[1] * z_ND.element_size()
    integers = next(kind for size, kind in _INTEGERS.items() if row_bytes % size == 0)
    return torch.cat([rows.view(integers).sum(1) for rows in _chunks(z_ND)])


def _digests(z_ND: Tensor, wanted_N: Tensor) -> Iterator[bytes]:
    for place in wanted_N.nonzero()[:, 0].tolist():
        yield blake2b(z_ND[place].numpy().tobytes(), digest_size=16).digest()


def _chunks(z_ND: Tensor) -> tuple[Tensor, ...]:
    return z_ND.split(max(1, _CHUNK_BYTES // (z_ND.shape[1] * z_ND.element_size())))

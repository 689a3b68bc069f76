"""Input checks of the searches, with errors that say which row of which set is at fault.

Shapes: N rows, D embedding width, L levels of width, W widths.
"""

from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from mrl.search.scales import Scale, in_float32, scaled

# Squared norms above it overflow float32 in 2<q,x> - |x|^2; below it, squares of entries vanish.
_MIN_SQUARE, _MAX_SQUARE = 1e-24, 1e37
# Where a norm lies outside, which entries are still large enough and small enough.
_MIN_ENTRY, _MAX_ENTRY = 2.0**-40, 2.0**50
_ROWS = 4096  # read at once: the bank may be a map of a file that is larger than memory
_MOST_LEVELS = 16
_ROUNDING = 1.001  # on top of what float32 norms say


class RowBounds:
    """How large the squared norms of prefixes of any row are at most, by width.

    Of the rest, too: the columns from ``exact`` on; for another ``exact`` the whole prefix counts.
    """

    def __init__(
        self, levels: Sequence[int], exact: float, largest_3L: Tensor, misfits: set[int]
    ) -> None:
        """``largest_3L``: squared norm, that of the rest, and its share, at each level.

        ``misfits``: widths at which some row is so short, but not zero, or so long that float32
        cannot hold the square of its norm well.
        """
        self.levels, self.exact, self.misfits = levels, exact, misfits
        self.squares, self.rests, self.shares = largest_3L.tolist()

    def largest(self, m: int) -> float:
        return self.squares[bisect_left(self.levels, m)]

    def rest_square(self, m: int, exact: float) -> float:
        at = bisect_left(self.levels, m)
        return self.rests[at] * _ROUNDING if exact == self.exact else self.squares[at]

    def rest_share(self, m: int, exact: float) -> float:
        """Of the squared norm, 0 to 1."""
        at = bisect_left(self.levels, m)
        return min(1.0, self.shares[at] * _ROUNDING) if exact == self.exact else 1.0


def fits_float32(square: float) -> bool:
    """Whether the largest of squared norms leaves room in float32 for sums and roundings."""
    return _MIN_SQUARE <= square <= _MAX_SQUARE


def check_rows(
    name: str,
    x: Tensor,
    widths: Sequence[int],
    *,
    nonzero: bool,
    workers: ThreadPoolExecutor | None = None,
    first_row: int = 0,
    exact: float = inf,
    scale: Scale = 1.0,
) -> RowBounds:
    """Refuse NaN, infinities, and zero prefixes if ``nonzero``.

    Args:
        name: "bank" or "queries", for the message.
        x: (N, D).
        widths: of the prefixes, ascending.
        workers: threads that share the work.
        first_row: what the first row is called in messages.
        exact: where the rest of the returned bounds begins; one of the widths, 0 or infinite.
        scale: of the rows that the returned bounds are of.

    Raises:
        ValueError: naming the first such row, and the width.
    """
    step = -(-len(widths) // _MOST_LEVELS)
    levels = sorted({widths[0], *widths[::-1][::step], *(m for m in widths if m == exact)})

    def bounds_from(start: int) -> tuple[Tensor, set[int]]:
        block = x[start : start + _ROWS, : levels[-1]]
        rows = in_float32(block, scale, x.device)
        parts = [torch.linalg.vector_norm(rows[:, a:b], dim=1) for a, b in pairwise([0, *levels])]
        square_LN = torch.stack(parts).square_().cumsum(0)
        long_N, short_LN = ~(square_LN[-1] <= _MAX_SQUARE), square_LN < _MIN_SQUARE
        misfits = set()
        if (long_N | short_LN[0]).any():
            _refuse(name, block, long_N, short_LN[0], widths, nonzero, first_row + start)
            misfits = _misfits(block, scale, long_N, short_LN, levels, widths)
        before_N = square_LN[levels.index(int(exact))] if exact in levels else 0.0
        rest_LN = (square_LN - before_N).clamp_(min=0.0) if exact < inf else square_LN
        share_LN = torch.where(square_LN > 0, rest_LN / square_LN, 1.0)
        return torch.stack([square_LN.amax(1), rest_LN.amax(1), share_LN.amax(1)]), misfits

    go_through = workers.map if workers else map
    largest_3L, misfits = zip(*go_through(bounds_from, range(0, len(x), _ROWS)), strict=True)
    return RowBounds(levels, exact, torch.stack(largest_3L).amax(0), set().union(*misfits))


def _misfits(
    x_ND: Tensor,
    scale: Scale,
    long_N: Tensor,
    short_LN: Tensor,
    levels: Sequence[int],
    widths: Sequence[int],
) -> set[int]:
    """At which widths the norm of any row, scaled, is none that float32 can work with.

    Args:
        long_N: rows that are too long, at the last level.
        short_LN: rows whose prefix at a level is too short, or zero.
    """
    misfits = set()
    # Norms grow with the width: beyond a level only rows are short that are so there.
    for (lo, hi), short_N in zip(pairwise([0, *levels]), [short_LN[0], *short_LN], strict=False):
        odd = (long_N | short_N).nonzero()[:, 0]
        columns = hi if scale == 1.0 else levels[-1]  # a row's own scale is that of all columns
        odd_NC = scaled(x_ND[odd, :columns].double(), scale)
        entry_NC = odd_NC[:, :hi].abs().cummax(1).values
        misfit_NC = ((entry_NC > 0) & (entry_NC < _MIN_ENTRY)) | (entry_NC > _MAX_ENTRY)
        misfit_C = misfit_NC.any(0).tolist()
        misfits |= {m for m in widths if lo < m <= hi and misfit_C[m - 1]}
    return misfits


def _refuse(
    name: str,
    x_ND: Tensor,
    long_N: Tensor,
    short_N: Tensor,
    widths: Sequence[int],
    nonzero: bool,
    first_row: int,
) -> None:
    """Raise the error of the first row that has one: a long one or one short from the start."""
    long, short = long_N.nonzero()[:, 0], short_N.nonzero()[:, 0]
    wrong = long[~torch.isfinite(x_ND[long]).all(1)]
    if nonzero:
        wrong = torch.cat([wrong, short[(x_ND[short, : widths[0]] == 0).all(1)]])
    if len(wrong):
        row = int(wrong.min())
        raise ValueError(f"{name} row {first_row + row} {_what_is_wrong(x_ND[row], widths)}")


def _what_is_wrong(x_D: Tensor, widths: Sequence[int]) -> str:
    for m in widths:
        if not torch.isfinite(x_D[:m]).all():
            return f"(granularity {m}) has NaN or infinite values"
    return (
        f"is all zeros in its first {widths[0]} columns (granularity {widths[0]}), so its cosine "
        f"is undefined: drop such rows, use metric='l2', or pass allow_zero=True to score them 0"
    )

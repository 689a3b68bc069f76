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
        rows = in_float32(x[start : start + _ROWS, : levels[-1]], scale, x.device)
        parts = [torch.linalg.vector_norm(rows[:, a:b], dim=1) for a, b in pairwise([0, *levels])]
        square_LN = torch.stack(parts).square_().cumsum(0)
        long_N, short_LN = ~(square_LN[-1] <= _MAX_SQUARE), square_LN < _MIN_SQUARE
        misfits = set()
        if (long_N | short_LN[0]).any():
            long, short = (start + odd_N.nonzero()[:, 0] for odd_N in (long_N, short_LN[0]))
            _refuse(name, x, long, short, widths, nonzero, first_row)
            # Rows that were only short are not short any more in wider prefixes.
            at = len(levels) - 1 if len(long) else min(int(short_LN.any(1).sum()), len(levels) - 1)
            doubtful = [m for m in widths if m <= levels[at]]
            odd_NC = x[torch.cat([long, short]), : levels[at]].to(torch.float64)
            misfits = _misfits(scaled(odd_NC, scale), doubtful)
        before_N = square_LN[levels.index(int(exact))] if exact in levels else 0.0
        rest_LN = (square_LN - before_N).clamp_(min=0.0) if exact < inf else square_LN
        share_LN = torch.where(square_LN > 0, rest_LN / square_LN, 1.0)
        return torch.stack([square_LN.amax(1), rest_LN.amax(1), share_LN.amax(1)]), misfits

    go_through = workers.map if workers else map
    largest_3L, misfits = zip(*go_through(bounds_from, range(0, len(x), _ROWS)), strict=True)
    return RowBounds(levels, exact, torch.stack(largest_3L).amax(0), set().union(*misfits))


def _misfits(odd_ND: Tensor, widths: Sequence[int]) -> set[int]:
    """At which widths any of a few float64 rows has no norm that float32 can work with."""
    entry_NW = odd_ND.abs().cummax(1).values[:, [m - 1 for m in widths]]
    misfit_NW = ((entry_NW > 0) & (entry_NW < _MIN_ENTRY)) | (entry_NW > _MAX_ENTRY)
    return {m for m, misfit in zip(widths, misfit_NW.any(0).tolist(), strict=True) if misfit}


def _refuse(
    name: str,
    x: Tensor,
    long: Tensor,
    short: Tensor,
    widths: Sequence[int],
    nonzero: bool,
    first_row: int,
) -> None:
    """Raise the error of the first row that has one: of long rows or those short from the start."""
    wrong = long[~torch.isfinite(x[long, : widths[-1]]).all(1)]
    if nonzero:
        wrong = torch.cat([wrong, short[(x[short, : widths[0]] == 0).all(1)]])
    if len(wrong):
        row = int(wrong.min())
        raise ValueError(f"{name} row {first_row + row} {_what_is_wrong(x[row], widths)}")


def _what_is_wrong(x_D: Tensor, widths: Sequence[int]) -> str:
    for m in widths:
        if not torch.isfinite(x_D[:m]).all():
            return f"(granularity {m}) has NaN or infinite values"
    return (
        f"is all zeros in its first {widths[0]} columns (granularity {widths[0]}), so its cosine "
        f"is undefined: drop such rows, use metric='l2', or pass allow_zero=True to score them 0"
    )

"""Input checks of the searches, with errors that say which row of which set is at fault.

Shapes: N rows, D embedding width, L levels of width.
"""

from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from mrl.search.pairs import MIN_NORM

_MAX_SQUARE = 1e37  # squared norms above this overflow float32 in 2<q,x> - |x|^2
_ROWS = 4096  # read at once: the bank may be a map of a file that is larger than memory
_MOST_LEVELS = 16
_ROUNDING = 1.001  # on top of what float32 norms say


class RowBounds:
    """How large the squared norms of prefixes of any row are at most, by width.

    Of the rest, too: the columns from ``exact`` on; for another ``exact`` the whole prefix counts.
    """

    def __init__(self, levels: Sequence[int], exact: float, largest_3L: Tensor) -> None:
        """``largest_3L``: squared norm, that of the rest, and its share, at each level."""
        self.levels, self.exact = levels, exact
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


def check_rows(
    name: str,
    x: Tensor,
    widths: Sequence[int],
    *,
    nonzero: bool,
    workers: ThreadPoolExecutor | None = None,
    first_row: int = 0,
    exact: float = inf,
) -> RowBounds:
    """Refuse NaN, infinities, overflow, and zero prefixes if ``nonzero``.

    Args:
        name: "bank" or "queries", for the message.
        x: (N, D).
        widths: of the prefixes, ascending.
        workers: threads that share the work.
        first_row: what the first row is called in messages.
        exact: where the rest of the returned bounds begins; one of the widths, 0 or infinite.

    Raises:
        ValueError: naming the first such row, and the width.
    """
    step = -(-len(widths) // _MOST_LEVELS)
    levels = sorted({widths[0], *widths[::-1][::step], *(m for m in widths if m == exact)})

    def largest_in(start: int) -> Tensor:
        rows = x[start : start + _ROWS, : levels[-1]].to(x.device, torch.float32)
        parts = [torch.linalg.vector_norm(rows[:, a:b], dim=1) for a, b in pairwise([0, *levels])]
        square_LN = torch.stack(parts).square_().cumsum(0)
        wrong_N = ~(square_LN[-1] <= _MAX_SQUARE)
        if nonzero:
            wrong_N |= square_LN[0].sqrt() < MIN_NORM
        if wrong_N.any():
            row = start + int(wrong_N.int().argmax())
            raise ValueError(f"{name} row {first_row + row} {_what_is_wrong(x[row], widths)}")
        before_N = square_LN[levels.index(int(exact))] if exact in levels else 0.0
        rest_LN = (square_LN - before_N).clamp_(min=0.0) if exact < inf else square_LN
        share_LN = torch.where(square_LN > 0, rest_LN / square_LN, 1.0)
        return torch.stack([square_LN.amax(1), rest_LN.amax(1), share_LN.amax(1)])

    go_through = workers.map if workers else map
    largest_3L = torch.stack(list(go_through(largest_in, range(0, len(x), _ROWS)))).amax(0)
    return RowBounds(levels, exact, largest_3L)


def _what_is_wrong(x_D: Tensor, widths: Sequence[int]) -> str:
    for m in widths:
        if not torch.isfinite(x_D[:m]).all():
            return f"(granularity {m}) has NaN or infinite values"
        if not x_D[:m].float().square().sum() <= _MAX_SQUARE:
            return (
                f"(granularity {m}) has values too large for float32 products: scale the data down"
            )
    return (
        f"is all zeros in its first {widths[0]} columns (granularity {widths[0]}), so its cosine "
        f"is undefined: drop such rows, use metric='l2', or pass allow_zero=True to score them 0"
    )

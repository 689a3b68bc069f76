"""Input checks of the searches, with errors that say which row of which set is at fault.

Shapes: N rows, D embedding width, L levels of width.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from mrl.search.pairs import MIN_NORM

_MAX_SQUARE = 1e37  # squared norms above this overflow float32 in 2<q,x> - |x|^2
_ROWS = 4096  # read at once: the bank may be a map of a file that is larger than memory
_MOST_LEVELS = 16


class SquareBounds:
    """The largest squared norm of any row, at least, by width: its :meth:`at`."""

    def __init__(self, levels: Sequence[int], largest_L: Tensor) -> None:
        self.levels, self.largest = levels, largest_L.tolist()

    def at(self, m: int) -> float:
        return next(x for level, x in zip(self.levels, self.largest, strict=True) if level >= m)


def check_rows(
    name: str,
    x: Tensor,
    widths: Sequence[int],
    *,
    nonzero: bool,
    workers: ThreadPoolExecutor | None = None,
    first_row: int = 0,
) -> SquareBounds:
    """Refuse NaN, infinities, overflow, and zero prefixes if ``nonzero``.

    Args:
        name: "bank" or "queries", for the message.
        x: (N, D).
        widths: of the prefixes, ascending.
        workers: threads that share the work.
        first_row: what the first row is called in messages.

    Raises:
        ValueError: naming the first such row, and the width.
    """
    step = -(-len(widths) // _MOST_LEVELS)
    levels = sorted({widths[0], *widths[::-1][::step]})

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
        return square_LN.amax(1)

    go_through = workers.map if workers else map
    largest_L = torch.stack(list(go_through(largest_in, range(0, len(x), _ROWS)))).amax(0)
    return SquareBounds(levels, largest_L)


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

"""Which widths go through the bank together, and how rows are scaled for the filter.

Nearly always all widths go at once and the rows stay as they are.  Where float32 cannot hold the
squares of norms (entries around 1e-20 or 1e20, or beyond float32 in float64), the filter gets rows
times powers of two; a width that needs another one than wider prefixes goes alone.

Shapes: B bank, Q queries, D embedding width.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from mrl.search.blocks import exact_columns
from mrl.search.checks import RowBounds, check_rows, fits_float32
from mrl.search.pairs import Metric
from mrl.search.scales import Scale, power_of_two, scaled

_ROWS = 4096  # read at once


@dataclass(frozen=True, slots=True)
class Pass:
    """A search at some of the widths."""

    widths: list[int]
    queries: Tensor  # (Q, D) as they came; if rows are scaled float64, for cosine scaled already
    scale: Scale  # of bank rows in the filter, and of queries for l2
    bounds: RowBounds  # of the scaled bank


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sets of a search, and by what they are compared."""

    bank: Tensor
    queries: Tensor
    metric: Metric
    allow_zero: bool
    workers: ThreadPoolExecutor

    def passes(self, widths: list[int]) -> list[Pass]:
        """One for all widths, or as many as they need.

        Raises:
            ValueError: see :func:`check_rows`.
        """
        bounds, misfits = self._look(self.queries, widths, 1.0)
        usual = [m for m in widths if m not in misfits]
        others = self._scaled_passes([m for m in widths if m in misfits])
        if not usual:
            return others
        if misfits:
            bounds, _ = self._look(self.queries, usual, 1.0)
        return [Pass(usual, self.queries, 1.0, bounds), *others]

    def _scaled_passes(self, widths: list[int]) -> list[Pass]:
        if len(widths) > 1:
            together, misfits = self._scaled_pass(widths)
            if not misfits:
                return [together]
        return [self._scaled_pass([m])[0] for m in widths]

    def _scaled_pass(self, widths: list[int]) -> tuple[Pass, set[int]]:
        """With the scales that the widest needs; and at which widths these do not do."""
        queries = self.queries[:, : widths[-1]].double()
        scale: Scale = None
        if self.metric == "cosine":
            queries = scaled(queries, None)
        else:
            largest = max(self._largest_entry(x, widths[-1]) for x in (self.bank, queries))
            scale = float(power_of_two(torch.tensor(largest, dtype=torch.float64)))
        bounds, misfits = self._look(queries, widths, scale)
        return Pass(widths, queries, scale, bounds), misfits

    def _look(
        self, queries: Tensor, widths: Sequence[int], scale: Scale
    ) -> tuple[RowBounds, set[int]]:
        """Bounds of the scaled bank, and at which widths the scale does not do."""
        nonzero = self.metric == "cosine" and not self.allow_zero
        of_queries = check_rows(
            "queries", queries, widths, nonzero=nonzero, workers=self.workers, scale=scale or 1.0
        )
        of_bank = check_rows(
            "bank",
            self.bank,
            widths,
            nonzero=nonzero,
            workers=self.workers,
            exact=exact_columns(widths, bf16=True),
            scale=scale,
        )
        if self.metric == "cosine":
            return of_bank, of_bank.misfits | of_queries.misfits
        # For l2 short rows among long ones do no harm: distances are rounded to what these allow.
        largest = {m: max(of_bank.largest(m), of_queries.largest(m)) for m in widths}
        return of_bank, {m for m in widths if not fits_float32(largest[m])}

    def _largest_entry(self, x: Tensor, m: int) -> float:
        def of(start: int) -> float:
            return float(x[start : start + _ROWS, :m].abs().amax())

        return max(self.workers.map(of, range(0, len(x), _ROWS)))

"""The bank block by block: rows in float32 with what the filter needs to know of them.

Shapes: B bank rows of a block, C columns, G widths, W widths.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from mrl.search.pairs import RUN, Metric, rank_in_run, sum_in_runs
from mrl.search.scales import Scale, in_float32

UNIT, BF16_UNIT = 2.0**-24, 2.0**-8  # relative error of one rounding to float32, to bfloat16
# Of a product in bfloat16, relative to the norms of the columns it is of: roundings of both inputs
# and of what comes out.
COARSE_ERROR = 3.02 * BF16_UNIT
_FEW_COLUMNS = 4  # up to so many, multiplying column by column beats a matrix product
MOST_COLUMNS = 256  # of one float32 product; the bound on its error grows with them
WIDE_COLUMNS = 32  # from here on bfloat16 pays, with its result added in another step
_TWIN_WIDTH = 16  # up to this width equal bank prefixes are looked for; beyond it they are rare
SQUARES_ERROR = (RUN + 4) * UNIT  # relative
_MANY_WIDTHS = 64  # one cumulative sum is then cheaper than that many sums


@dataclass(slots=True)
class BankBlock:
    """Rows ``start``.. of the bank, and for each width what turns inner products into values.

    The filter ranks by a float32 value that orders a query's pairs as the metric does, without the
    query's own norm: <q, x> / |x| for cosine, 2 <q, x> - |x|^2 for l2.
    """

    start: int
    rows: Tensor  # float32 (B, C)
    columns: Tensor  # the same, transposed; in this order in memory if products need few columns
    half: Tensor | None  # the rows in bfloat16
    metric: Metric
    weight: Tensor  # (G, B), float32; cosine: 1 / |x|, 0 for a zero prefix; l2: |x|^2
    spare: list[Tensor | None]  # by width: rows (B,) that can never be among the k best

    @classmethod
    def read(
        cls,
        bank: Tensor,
        start: int,
        stop: int,
        widths: Sequence[int],
        k: int,
        metric: Metric,
        device: torch.device,
        *,
        products: Sequence[int],
        bf16: bool,
        scale: Scale = 1.0,
    ) -> "BankBlock":
        """``products``: the widths up to which inner products will be wanted, one by one."""
        block_BC = bank[start:stop, : widths[-1]]
        rows_BC = in_float32(block_BC, scale, device).contiguous()
        weight_GB = square_sums(rows_BC, widths)
        if metric == "cosine":
            norm_GB = weight_GB.sqrt_()
            weight_GB = torch.where(norm_GB == 0, 0.0, 1.0 / norm_GB)
        exact_BC = None
        if bank.dtype == torch.float64 or scale != 1.0:
            exact_BC = block_BC[:, :_TWIN_WIDTH].to(device)
        spare_GB = [_spare(rows_BC[:, :m], exact_BC, k, metric) for m in widths]
        columns_CB = rows_BC[:, : products[-1]].T
        if sum(hi - lo <= _FEW_COLUMNS for lo, hi in pairwise([0, *products])) > 1:
            columns_CB = columns_CB.contiguous()
        half_BC = None
        if exact_columns(products, bf16) < math.inf:
            half_BC = rows_BC[:, : products[-1]].bfloat16()
        return cls(start, rows_BC, columns_CB, half_BC, metric, weight_GB, spare_GB)

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, inner_QB: Tensor, g: int, *, out: Tensor) -> None:
        """The filter's values at width number ``g``."""
        if self.metric == "cosine":
            torch.mul(inner_QB, self.weight[g], out=out)
        else:
            torch.sub(inner_QB, self.weight[g], alpha=0.5, out=out).mul_(2.0)


def add_products(
    inner_QB: Tensor,
    scratch_QB: Tensor,
    q_QC: Tensor,
    half_QC: Tensor | None,
    block: BankBlock,
    lo: int,
    hi: int,
) -> None:
    """Add the inner products over columns lo..hi; float32 (Q, B), in place.

    Args:
        scratch_QB: overwritten.
        half_QC: the queries in bfloat16, to multiply wide runs of columns in it.
    """
    if half_QC is not None and block.half is not None and hi - lo >= WIDE_COLUMNS:
        inner_QB.add_(half_QC[:, lo:hi] @ block.half[:, lo:hi].T)
    elif hi - lo > _FEW_COLUMNS:
        for start in range(lo, hi, MOST_COLUMNS):
            columns = slice(start, min(start + MOST_COLUMNS, hi))
            torch.mm(q_QC[:, columns], block.columns[columns], out=scratch_QB)
            inner_QB.add_(scratch_QB)
    else:
        for c in range(lo, hi):
            torch.addcmul(inner_QB, q_QC[:, c : c + 1], block.columns[c], out=inner_QB)


def error_of_products(m: int, widths: Sequence[int]) -> float:
    """Largest error of what :func:`add_products` sums to width m in float32, relative to |q| |x|.

    Args:
        widths: between which products are added, m among them.
    """
    # Roundings of every product and of every sum.
    added = m // MOST_COLUMNS + _FEW_COLUMNS * bisect_right(widths, m)
    return (min(m, MOST_COLUMNS) + min(m, added) + 8) * UNIT


def exact_columns(widths: Sequence[int], bf16: bool) -> float:
    """How many of the first columns are multiplied in float32; infinite if all are."""
    if not bf16:
        return math.inf
    return next((lo for lo, hi in pairwise([0, *widths]) if hi - lo >= WIDE_COLUMNS), math.inf)


def square_sums(x_NC: Tensor, widths: Sequence[int]) -> Tensor:
    """Squared norms of the prefixes of float32 rows, float32 (G, N); error ``SQUARES_ERROR``."""
    if len(widths) >= _MANY_WIDTHS:
        return _all_square_sums(x_NC[:, : widths[-1]])[:, [m - 1 for m in widths]].T
    square_NC = x_NC[:, : widths[-1]].square()
    parts = [sum_in_runs(square_NC[:, lo:hi]) for lo, hi in pairwise([0, *widths])]
    return torch.stack(parts).cumsum(0).float()


def _all_square_sums(x_NC: Tensor) -> Tensor:
    """The same for every column, float32 (N, C)."""
    columns = x_NC.shape[1]
    runs_NRC = pad(x_NC, (0, -columns % RUN)).square_().unflatten(1, (-1, RUN)).cumsum_(2)
    ends_NR = runs_NRC[:, :, -1].double().cumsum(1).float()
    runs_NRC[:, 1:] += ends_NR[:, :-1, None]
    return runs_NRC.flatten(1)[:, :columns]


def _spare(x_BM: Tensor, exact_BC: Tensor | None, k: int, metric: Metric) -> Tensor | None:
    """Which rows (B,) equal k rows before them; None: this was not looked for.

    Args:
        exact_BC: the rows as they came, where different ones may be equal in float32.
    """
    m = x_BM.shape[1]
    if m > _TWIN_WIDTH:
        return None
    spare_B = _has_equals_before(_compared(x_BM, metric), k)
    if exact_BC is not None and spare_B.any():
        spare_B = _has_equals_before(_compared(exact_BC[:, :m], metric), k)
    return spare_B


def _compared(x_BM: Tensor, metric: Metric) -> Tensor:
    """A single column has only its sign once it is normalised: all of one sign are equal."""
    return x_BM.sign() if metric == "cosine" and x_BM.shape[1] == 1 else x_BM


def _has_equals_before(x_BM: Tensor, k: int) -> Tensor:
    """Which rows (B,) equal at least k rows before them in the block.

    Equal rows get equal keys; where different rows share one, fewer equals may be found.
    """
    generator = torch.Generator().manual_seed(0)
    key_M = torch.rand(x_BM.shape[1], generator=generator)
    order = (x_BM * key_M.to(x_BM.device)).sum(1).argsort(stable=True)
    differs = (x_BM[order[1:]] != x_BM[order[:-1]]).any(1)
    run = torch.cat([differs.new_zeros(1), differs]).cumsum(0)
    spare_B = torch.empty_like(order, dtype=torch.bool)
    spare_B[order] = rank_in_run(run, torch.bincount(run)) >= k
    return spare_B

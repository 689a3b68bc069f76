"""How to search a bank, judged by a sample of it: by which prefix first, and in which precision.

Shapes: Q sampled queries, B sampled bank rows, D embedding width, W widths, K neighbours.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from mrl.precision import has_bf16
from mrl.search.blocks import COARSE_ERROR, WIDE_COLUMNS, error_of_products, exact_columns
from mrl.search.pairs import Metric

_QUERIES, _ROWS = 32, 4096  # of the sample, at most; and of the bank at most a quarter
_SMALL_BANK = 2048  # needs no plan
_NARROWEST = 16
_MOST_WIDTHS = 12  # at which the sample is compared
_LEAST_SIZE = 1e-12  # of |q| |x|: nothing is divided by 0; what is so short is judged roughly

# Costs for each pair of query and bank row, in multiply-adds of a float32 matrix product (measured
# on an x86 CPU with AVX-512: 0.02 ns each).
_BF16 = 0.25  # a multiply-add in bfloat16; less where there is AMX
_SCAN = 20.0  # to look through the values at one width
_PAIR = 5000.0  # to take down a pair that stays in the race
_RANKED = 16.0  # to score it in float32, for each column
_SURVIVOR = 75.0  # the same in float64


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """``start``: the width to scan with before the wider ones are refined, None: scan all."""

    start: int | None
    bf16: bool  # wide blocks of columns are multiplied in bfloat16


@torch.no_grad()
def choose_plan(
    bank: Tensor, queries: Tensor, widths: Sequence[int], k: int, metric: Metric
) -> ScanPlan:
    """The plan that costs least on a sample of the bank and the queries."""
    if len(bank) <= _SMALL_BANK:
        return ScanPlan(None, False)
    last = widths[-1]
    starts = [_NARROWEST << j for j in range(64) if _NARROWEST << j <= last // 2]
    sample = _Sample(bank, queries, _levels(starts, widths), k, metric)

    def scan(widths: Sequence[int], bf16: bool) -> float:
        cost, exact = 0.0, exact_columns(widths, bf16)
        for lo, hi in pairwise([0, *widths]):
            in_bf16 = bf16 and hi - lo >= WIDE_COLUMNS
            cost += (hi - lo) * (_BF16 if in_bf16 else 1.0) + _SCAN
            price = _PAIR + (_RANKED * hi if hi > exact or metric == "l2" else 0.0)
            cost += sample.share_near(hi, exact) * price
        return cost

    def refine(start: int, bf16: bool) -> float:
        narrow = sorted({start, *(m for m in widths if m < start)})
        again = start * (_BF16 if bf16 and start >= WIDE_COLUMNS else 1.0) + _SCAN
        # Most survivors of the first look are dropped after as many columns again.
        left = sample.share_left(start)
        columns = left * (2 * start + last / 8) + k / len(bank) * last
        return scan(narrow, bf16) + again + left * _PAIR + columns * _SURVIVOR

    costs = {}
    for bf16 in (False, True) if has_bf16(queries.device) else (False,):
        costs[ScanPlan(None, bf16)] = scan(widths, bf16)
        if not queries.is_cuda:  # of many short steps, each of which a GPU would wait for
            costs |= {ScanPlan(start, bf16): refine(start, bf16) for start in starts}
    return min(costs, key=costs.__getitem__)


class _Sample:
    """Some queries and bank rows, their distances (Q, B) and the sizes |q| |x|, by width."""

    def __init__(
        self, bank: Tensor, queries: Tensor, levels: Sequence[int], k: int, metric: Metric
    ) -> None:
        last = levels[-1]
        q_QD = _spread(queries, _QUERIES)[:, :last].float()
        x_BD = _spread(bank, min(_ROWS, len(bank) // 4))[:, :last].to(queries.device, torch.float32)
        self.levels, self.metric = levels, metric
        self.shares: dict[tuple[int, float], float] = {}
        self.distance, self.size, self.squares = _distances(q_QD, x_BD, levels, metric)
        near = -(-k * len(x_BD) // len(bank))  # the k-th best of the bank, in the sample
        self.least = k / len(bank)
        self.worst = {m: self.distance[m].kthvalue(near, 1, keepdim=True).values for m in levels}

    def share_near(self, m: int, exact: float) -> float:
        """Of the pairs that the filter keeps at width m, or the next that was sampled."""
        level = self.levels[bisect_left(self.levels, m)]
        if (level, exact) not in self.shares:
            # For l2 errors go with |q|^2 + |x|^2 and count twice; about so.
            size = self.size[level].amax(1, True)
            error_Q1 = error_of_products(level, self.levels) * torch.ones_like(size)
            if level > exact:
                error_Q1 += COARSE_ERROR * (self._rest(level, exact) / size)
            error_Q1 *= 1 if self.metric == "cosine" else 4 * size
            kept = (self.distance[level] <= self.worst[level] + 2 * error_Q1).float().mean()
            self.shares[level, exact] = max(self.least, kept.item())
        return self.shares[level, exact]

    def _rest(self, m: int, exact: float) -> Tensor:
        """|q| |x| of the columns from ``exact`` to m, of each query and the largest row (Q, 1)."""
        of_Q1, of_B = self.squares[m]
        if exact in self.squares:
            before_Q1, before_B = self.squares[int(exact)]
            of_Q1, of_B = of_Q1 - before_Q1, of_B - before_B
        return (of_Q1 * of_B.amax()).clamp(min=0.0).sqrt()

    def share_left(self, start: int) -> float:
        """Of the pairs that the widths beyond ``start`` cannot do without."""
        reach_Q1 = [
            self.worst[m] / (self.size[start] / self.size[m]).amin(1, True)
            if self.metric == "cosine"
            else self.worst[m]
            for m in self.levels
            if m > start
        ]
        return (self.distance[start] <= torch.stack(reach_Q1).amax(0)).float().mean().item()


def _levels(starts: Sequence[int], widths: Sequence[int]) -> list[int]:
    """The starts, some of the widths, and always the widest."""
    wide = [m for m in widths if not starts or m > starts[0]]
    wide = wide or list(widths)
    step = -(-len(wide) // _MOST_WIDTHS)
    exact = [m for m in widths if m == exact_columns(widths, bf16=True)]
    return sorted({*starts, *wide[::-1][::step], *exact})


def _distances(
    q_QD: Tensor, x_BD: Tensor, levels: Sequence[int], metric: Metric
) -> tuple[dict[int, Tensor], dict[int, Tensor], dict[int, tuple[Tensor, Tensor]]]:
    """The distance (Q, B), |q| |x|, and |q|^2 (Q, 1) and |x|^2 (B,) at each level."""
    inner = torch.zeros(len(q_QD), len(x_BD), device=q_QD.device)
    square_Q, square_B = q_QD.new_zeros(len(q_QD), 1), x_BD.new_zeros(len(x_BD))
    distance, size, squares = {}, {}, {}
    for lo, hi in pairwise([0, *levels]):
        q, x = q_QD[:, lo:hi], x_BD[:, lo:hi]
        inner += q @ x.T
        square_Q += q.square().sum(1, keepdim=True)
        square_B += x.square().sum(1)
        squares[hi] = square_Q.clone(), square_B.clone()
        size[hi] = (square_Q * square_B).sqrt().clamp(min=_LEAST_SIZE)
        if metric == "l2":
            distance[hi] = square_Q + square_B - 2 * inner
        else:
            distance[hi] = 1 - inner / size[hi]
    return distance, size, squares


def _spread(x: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spread."""
    return x[torch.linspace(0, len(x) - 1, min(most, len(x)), device=x.device).long()]

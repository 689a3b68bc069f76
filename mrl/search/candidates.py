"""Which bank rows can still be among the k nearest, by a float32 value, and their float64 ranking.

Shapes: B bank, Q queries, D embedding width, M prefix width, K neighbours, P candidate pairs.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Metric = Literal["cosine", "l2"]
MIN_NORM = 1e-12  # shorter prefixes count as zero for cosine; the same limit as F.normalize
_UNIT = 2.0**-24  # relative error of one float32 rounding
_MAX_PAIRS = 500_000  # candidates held for one query block before they are thinned out
_RESCORE_BYTES = 16 * 2**20
_TWIN_WIDTH = 16  # up to this width equal bank prefixes are looked for; beyond it they are rare


@dataclass(slots=True)
class BankSide:
    """The bank at one width.

    The filter ranks by a float32 value that orders a query's pairs as the metric does, without the
    query's own norm: <q, x> / |x| for cosine, 2 <q, x> - |x|^2 for l2.
    """

    rows: Tensor  # (B, D) as given
    m: int
    metric: Metric
    inverse: Tensor  # 1 / |x|, or 0 for a zero prefix; float64
    column: Tensor  # what the filter multiplies by (cosine) or adds (l2), float32
    largest_square: Tensor
    spare: Tensor | None  # rows that can never be among the k best: k equal ones come before

    @classmethod
    def at(cls, rows: Tensor, m: int, k: int, metric: Metric, sq_B: Tensor) -> "BankSide":
        inverse_B = _inverse_norm(sq_B)
        column_B = (inverse_B if metric == "cosine" else -sq_B).float()
        side = cls(rows, m, metric, inverse_B, column_B, sq_B.max(), None)
        if m <= _TWIN_WIDTH:
            side.spare = _has_equals_before(side.compared(slice(None)), k)
        return side

    def compared(self, index: Tensor | slice) -> Tensor:
        """Those rows' prefixes in float64, normalised for cosine."""
        x = self.rows[index, : self.m].double()
        return x * self.inverse[index, None] if self.metric == "cosine" else x

    def filter_values(self, inner_QB: Tensor, start: int, *, out: Tensor) -> None:
        column_B = self.column[start : start + inner_QB.shape[1]]
        if self.metric == "cosine":
            torch.mul(inner_QB, column_B, out=out)
        else:
            torch.add(column_B, inner_QB, alpha=2, out=out)


class CandidatePool:
    """The candidates of one block of queries at one width.

    ``slack`` is twice the largest error of the filter's value, so that a pair further than that
    below the k-th best cannot be among the k best.
    """

    def __init__(self, bank: BankSide, queries: Tensor, sq_Q: Tensor, k: int) -> None:
        self.bank, self.k = bank, k
        self.query_QM = queries[:, : bank.m].double()
        if bank.metric == "cosine":
            self.query_QM = self.query_QM * _inverse_norm(sq_Q)[:, None]
            size_Q = sq_Q.sqrt()
        else:
            size_Q = 2 * (sq_Q + bank.largest_square)
        # m products and sums, and a few roundings of inputs, norms and the value itself.
        slack_Q = 2 * (bank.m + 12) * _UNIT * size_Q + torch.finfo(torch.float32).tiny
        self.slack_Q = slack_Q.float()
        self.best_QK = torch.full((len(queries), k), -torch.inf, device=queries.device)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # query row, bank index, filter value
        self.num_pairs = 0
        self.max_pairs = max(_MAX_PAIRS, 4 * len(queries) * k)
        if bank.metric == "cosine":
            self._settle((sq_Q.sqrt() < MIN_NORM).nonzero().squeeze(1))

    def _settle(self, rows: Tensor) -> None:
        """Zero queries are as near to everything: give them the first k, and look no further."""
        index = torch.arange(self.k, device=rows.device).repeat(len(rows))
        rows = rows.repeat_interleave(self.k)
        self.best_QK[rows] = torch.inf
        self.pairs.append((rows, index, torch.full_like(index, torch.inf, dtype=torch.float32)))

    def offer(self, value_QEH: Tensor, start: int) -> None:
        """Add bank rows ``start``.. as candidates: H groups of E (strided) columns of values.

        Most groups hold nothing new, and one fast maximum tells which.
        """
        top_QH = value_QEH.amax(dim=1)
        # The k-th largest of maxima is at most the k-th largest value: a safe bound.
        tops = torch.cat([self.best_QK, top_QH], dim=1)
        self.best_QK = tops.amax(1, keepdim=True) if self.k == 1 else tops.topk(self.k).values
        bound_Q = self.best_QK[:, -1] - self.slack_Q
        row, group = (top_QH >= bound_Q[:, None]).nonzero(as_tuple=True)
        value_PE = value_QEH[row, :, group]
        pair, member = (value_PE >= bound_Q[row, None]).nonzero(as_tuple=True)
        row, group, value = row[pair], group[pair], value_PE[pair, member]
        column = member * top_QH.shape[1] + group
        kept = value > -torch.inf  # the padding, while fewer than k were seen
        if self.bank.spare is not None:
            kept &= ~self.bank.spare[(column + start).clamp_(max=len(self.bank.rows) - 1)]
        self.pairs.append((row[kept], column[kept] + start, value[kept]))
        self.num_pairs += len(self.pairs[-1][0])
        if self.num_pairs > self.max_pairs:
            self._thin()

    def ranked(self) -> tuple[Tensor, Tensor]:
        """Scores (Q, K) in the metric's own units, and indices (Q, K), best first."""
        score_P = self._thin()
        _, index_P, _ = self.pairs[0]
        sign = 1.0 if self.bank.metric == "cosine" else -1.0
        return (sign * score_P).view(-1, self.k), index_P.view(-1, self.k)

    def _thin(self) -> Tensor:
        """Keep the k best candidates of each query, sorted; returns their float64 scores."""
        row, index, value = (torch.cat(column) for column in zip(*self.pairs, strict=True))
        near = (value >= self.best_QK[row, -1] - self.slack_Q[row]).nonzero().squeeze(1)
        near = near[index[near].argsort(stable=True)]  # lower index first among equals
        row, index, value = row[near], index[near], value[near]
        score = self._score(row, index)
        order = score.argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        order = order[_rank_in_run(row[order]) < self.k]
        self.pairs = [(row[order], index[order], value[order])]
        self.num_pairs = len(order)
        return score[order]

    def _score(self, row_P: Tensor, index_P: Tensor) -> Tensor:
        """Cosine, or the squared distance negated, of the pairs in float64 (P,)."""
        scores = []
        step = max(1, _RESCORE_BYTES // (16 * self.bank.m))
        for row, index in zip(row_P.split(step), index_P.split(step), strict=True):
            q, x = self.query_QM[row], self.bank.compared(index)
            cosine = self.bank.metric == "cosine"
            scores.append(q.mul_(x).sum(1) if cosine else -q.sub_(x).square_().sum(1))
        return torch.cat(scores)


def _has_equals_before(x_BM: Tensor, k: int) -> Tensor:
    """Which rows (B,) equal at least k rows before them.

    Equal rows get equal keys; where different rows share one, fewer equals may be found.
    """
    generator = torch.Generator().manual_seed(0)
    key_M = torch.rand(x_BM.shape[1], generator=generator, dtype=torch.float64)
    order = (x_BM * key_M.to(x_BM.device)).sum(1).argsort(stable=True)
    differs = (x_BM[order[1:]] != x_BM[order[:-1]]).any(1)
    run = torch.cat([differs.new_zeros(1), differs]).cumsum(0)
    spare_B = torch.empty_like(order, dtype=torch.bool)
    spare_B[order] = _rank_in_run(run) >= k
    return spare_B


def _rank_in_run(key_P: Tensor) -> Tensor:
    """0, 1, 2, ... within each run of equal values of a sorted tensor (P,) of row numbers."""
    count = torch.bincount(key_P)
    first = count.cumsum(0) - count
    return torch.arange(len(key_P), device=key_P.device) - first[key_P]


def _inverse_norm(sq: Tensor) -> Tensor:
    norm = sq.sqrt()
    return torch.where(norm < MIN_NORM, 0.0, 1.0 / norm)

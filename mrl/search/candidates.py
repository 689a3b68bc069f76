"""Which bank rows can still be among the k nearest at one width, and their ranking.

Shapes: Q queries, M prefix width, B bank rows of a block, N candidates of a query, K neighbours,
P pairs or groups; values (Q, E, H) are H groups of E columns.
"""

from collections.abc import Callable, Sequence
from math import sqrt

import torch
from torch import Tensor

from mrl.search.blocks import COARSE_ERROR, SQUARES_ERROR, UNIT, BankBlock, error_of_products
from mrl.search.checks import RowBounds
from mrl.search.distances import squared_distances
from mrl.search.pairs import Metric, Pairs, rank_in_run, rank_pairs

# (row_P, group_P) -> values (P, E) of these groups
ValuesOf = Callable[[Tensor, Tensor], Tensor]

_PRECISE = 4e-5  # error of values that are good enough to rank by, and to be given out
_MAX_CANDIDATES = 4096  # of one query, if k is less; more are ranked at once


def relative_error(m: int, widths: Sequence[int]) -> float:
    """Largest error of the filter's value at width m by float32, relative to the norms.

    Args:
        widths: that are scanned, m among them.
    """
    return error_of_products(m, widths) + SQUARES_ERROR + 8 * UNIT  # 8: of the value itself


def filter_error(
    m: int,
    widths: Sequence[int],
    exact: float,
    queries: Tensor,
    norm_Q: Tensor,
    bounds: RowBounds,
    metric: Metric,
) -> Tensor:
    """The same in the value's own unit and with the columns in bfloat16, float32 (Q,).

    Args:
        exact: see :func:`exact_columns`.
        norm_Q: of the queries' prefixes.
        bounds: of the bank's rows.
    """
    cosine = metric == "cosine"
    size_Q = norm_Q if cosine else 2 * (norm_Q.square() + bounds.largest(m))
    error_Q = relative_error(m, widths) * size_Q
    if m > exact:
        rest_Q = torch.linalg.vector_norm(queries[:, int(exact) : m].double(), dim=1)
        rest = bounds.rest_share(m, exact) if cosine else 4 * bounds.rest_square(m, exact)
        error_Q = error_Q + COARSE_ERROR * sqrt(rest) * rest_Q
    # Inputs, products and squares below float32's range count as 0.
    return error_Q.float() + (4 * m + 8) * torch.finfo(torch.float32).tiny


class CandidatePool:
    """The candidates of some queries at one width, in rows of ``value_QN`` and ``index_QN``.

    A pair further than ``slack``, twice the largest error of the filter's value, below the k-th
    best cannot be among the k best.
    """

    def __init__(
        self,
        bank: Tensor,
        queries: Tensor,
        m: int,
        k: int,
        metric: Metric,
        norm_Q: Tensor,
        error_Q: Tensor,
        relative: float,
        guess_Q: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        """Nothing is in it at first.

        Args:
            norm_Q: of the queries' prefixes, times the scale, float64.
            error_Q: of the filter's value, at most.
            relative: the same relative to ``norm_Q`` where it is so small that values will do for
                scores; else infinite.
            guess_Q: where the k-th best value is thought to be, or somewhat below.
            scale: for l2, what rows were multiplied by for the filter.
        """
        self.bank, self.queries, self.m, self.k, self.metric = bank, queries, m, k, metric
        self.norm_Q, self.relative = norm_Q, relative
        self.slack_Q = 2 * error_Q
        self.guess_Q, self.scale = guess_Q, scale
        shape = (len(queries), 2 * k + 14)
        self.value_QN = torch.full(shape, -torch.inf, device=queries.device)
        few = len(bank) < 2**31  # half the memory, so that more queries go at once
        dtype = torch.int32 if few else torch.int64
        self.index_QN = torch.zeros(shape, dtype=dtype, device=queries.device)
        # 1 / |x| of the candidates, to score them with; None: not needed, or computed anew.
        self.weight_QN: Tensor | None = None
        if metric == "cosine" and relative > _PRECISE:
            self.weight_QN = torch.zeros(shape, device=queries.device)
        self.count_Q = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
        # The k-th best, or something below it, if the guess is right.
        self.best_Q = self.value_QN[:, 0].clone() if guess_Q is None else guess_Q.clone()
        self.fresh = 0  # candidates since the k-th best was last sought
        # After how many of a query it is sought again: with a good guess it changes little.
        self.patience = max(k // 2, 4) if guess_Q is None else 3 * k
        if metric == "cosine":
            self._settle(norm_Q == 0)

    def _settle(self, zero_Q: Tensor) -> None:
        """Give these queries the first k of the bank, which score 0, and look no further.

        To zero queries everything is as near.
        """
        self.value_QN[zero_Q] = -torch.inf
        self.value_QN[zero_Q, : self.k] = torch.inf
        self.index_QN[zero_Q, : self.k] = torch.arange(self.k).to(self.index_QN)
        self.count_Q[zero_Q] = self.k
        self.best_Q[zero_Q] = torch.inf

    def offer(self, top_QH: Tensor, values_of: ValuesOf, block: BankBlock, g: int) -> None:
        """Take what is near enough of a block at width number ``g``; arguments: :func:`above`."""
        if self.k == 1:
            self.best_Q = torch.maximum(self.best_Q, top_QH.amax(1))
        elif top_QH.shape[1] >= self.k and bool((self.best_Q == -torch.inf).any()):
            # The k-th largest of maxima is at most the k-th largest value: a safe bound.
            self.best_Q = torch.maximum(self.best_Q, top_QH.topk(self.k).values[:, -1])
        row, column, value = above(top_QH, values_of, self.best_Q - self.slack_Q)
        kept = column < len(block)  # not the padding, while fewer than k were seen
        spare_B = block.spare[g]
        if spare_B is not None:
            kept &= ~spare_B[column.clamp(max=len(block) - 1)]
        row, column, value = row[kept], column[kept], value[kept]
        place = self._add(row, column + block.start, value)
        if self.weight_QN is not None:
            self.weight_QN[row, place] = block.weight[g][column]
        self.fresh += len(row)
        if self.fresh > self.patience * len(self.count_Q):
            self._raise_bound()

    def _add(self, row: Tensor, index: Tensor, value: Tensor) -> Tensor:
        """Append pairs, sorted by row; gives their columns in ``value_QN``."""
        new_Q = torch.bincount(row, minlength=len(self.count_Q))
        place = self.count_Q[row] + rank_in_run(row, new_Q)
        self.count_Q += new_Q
        lacking = int(self.count_Q.max()) - self.value_QN.shape[1]
        if lacking > 0:
            lacking = max(lacking, self.k // 2)
            self.value_QN = torch.nn.functional.pad(self.value_QN, (0, lacking), value=-torch.inf)
            self.index_QN = torch.nn.functional.pad(self.index_QN, (0, lacking))
            if self.weight_QN is not None:
                self.weight_QN = torch.nn.functional.pad(self.weight_QN, (0, lacking))
        self.value_QN[row, place] = value
        self.index_QN[row, place] = index.to(self.index_QN.dtype)
        return place

    def _raise_bound(self) -> None:
        """Find the k-th best so far and drop what has become too far away."""
        self.fresh = 0
        if self.k > 1:
            best_QK = self.value_QN.topk(self.k, sorted=False).values
            self.best_Q = torch.maximum(self.best_Q, best_QK.amin(1))
        near_QN = self.value_QN >= (self.best_Q - self.slack_Q)[:, None]
        near_QN &= self.value_QN > -torch.inf
        self.count_Q = near_QN.sum(1)
        most = max(int(self.count_Q.max()), self.k)
        value_QN = self.value_QN.masked_fill_(~near_QN, -torch.inf)
        self.value_QN, order = value_QN.topk(most)  # sorted: the dropped ones go to the end
        self.index_QN = self.index_QN.gather(1, order)
        if self.weight_QN is not None:
            self.weight_QN = self.weight_QN.gather(1, order)
        if most > max(_MAX_CANDIDATES, 2 * self.k):
            self._keep_only_the_best()

    def _keep_only_the_best(self) -> None:
        """Rank what float32 cannot tell apart, and drop all but k; all have k at least."""
        score_QK, index_QK = self._rank()
        self.weight_QN = None
        self.index_QN = index_QK.to(self.index_QN.dtype)
        norm_Q1 = self.norm_Q[:, None]
        if self.metric == "cosine":
            value_QK = score_QK * norm_Q1
        else:
            value_QK = norm_Q1.square() - squared_distances(score_QK, self.scale)
        settled_Q1 = (self.best_Q == torch.inf)[:, None]
        self.value_QN = value_QK.float().masked_fill_(settled_Q1, torch.inf)
        self.count_Q.fill_(self.k)

    def kth_best(self) -> Tensor:
        """The value (Q,) of the k-th best candidate."""
        self._raise_bound()
        return self.best_Q

    def ranked(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (Q, K), float64, larger is nearer, and indices (Q, K), best first.

        And for which queries (Q,) the guess was too high: what is given for those is of no use.
        """
        self._raise_bound()
        missed_Q = torch.zeros_like(self.count_Q, dtype=torch.bool)
        if self.guess_Q is not None:
            missed_Q = (self.value_QN >= self.guess_Q[:, None]).sum(1) < self.k
            self._settle(missed_Q)  # so that all have k candidates to rank
        return *self._rank(), missed_Q

    def _rank(self) -> tuple[Tensor, Tensor]:
        none = len(self.bank)
        in_order = self.index_QN.long().masked_fill(self.value_QN == -torch.inf, none).sort(1)
        row_P, place_P = (in_order.values < none).nonzero(as_tuple=True)
        index_P = in_order.values[row_P, place_P]
        at_P = row_P, in_order.indices[row_P, place_P]
        known, weight_P = None, None
        if self.weight_QN is not None:
            weight_P = self.weight_QN[at_P]
        if self.relative <= _PRECISE:
            value_P = self.value_QN[at_P].double()
            score_P = value_P / self.norm_Q[row_P]
            score_P.masked_fill_(value_P == torch.inf, 0.0)  # settled
            known = score_P, torch.full_like(score_P, self.relative)
        pairs = Pairs(self.bank, self.queries, self.metric, row_P, index_P)
        return rank_pairs(pairs, self.m, self.norm_Q, self.k, known, weight_P)


def above(top_QH: Tensor, values_of: ValuesOf, bound_Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of all that reach the row's bound, sorted by row.

    Args:
        top_QH: the largest value of each group: most hold nothing.
        values_of: gives the values of those that do; member e of group h is column ``e * H + h``.
    """
    row, group = (top_QH >= bound_Q[:, None]).nonzero(as_tuple=True)
    value_PE = values_of(row, group)
    pair, member = (value_PE >= bound_Q[row, None]).nonzero(as_tuple=True)
    row, group = row[pair], group[pair]
    return row, member * top_QH.shape[1] + group, value_PE[pair, member]


def values_at(value_QEH: Tensor, row_P: Tensor, group_P: Tensor) -> Tensor:
    """Those of picked groups, (P, E), out of all."""
    return value_QEH[row_P, :, group_P]

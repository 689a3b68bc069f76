"""Neighbours at wide prefixes from what a narrow one leaves over.

Prefixes are nested, so a narrow prefix bounds every wider one from below.  The squared distance
only grows with the width.  For cosine, with d = 1 - cos and a cut at s < h:

    d_h(q, x) >= d_s(q, x) * (|q_s| / |q_h|) * (|x_s| / |x_h|),

because <q, x> beyond s is at most the product of what the two have there (Cauchy-Schwarz), and
that product is at most |q_h| |x_h| - |q_s| |x_s|.  Once k items are known that are all within some
distance at h, every pair whose bound is above it is out.  Those that are left are scored in float64
over more and more columns, and the bound is applied again on the way.

Shapes: B bank rows of a block, Q queries, W widths, J stages, P pairs, K neighbours.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from mrl.search.blocks import BankBlock
from mrl.search.candidates import ValuesOf, above
from mrl.search.distances import beyond_squares, within_squares
from mrl.search.pairs import (
    Metric,
    Pairs,
    best_of_each,
    pair_scores,
    prefix_norms,
    running_sums,
    scores_of,
)

_MARGIN = 1e-4  # relative; on top of bounds, for the rounding of float32 norms
_ODD = 0.5  # a bank row that has less than this part of the usual ratio is kept without a look
_CHUNK_NUMBERS = 2**21  # of one array of scores


@dataclass(slots=True)
class Stages:
    """The columns after the narrow prefix ``start``, in runs that double the width."""

    start: int
    widths: list[int]  # asked for, ascending, all above start
    ends: list[int] = field(init=False)

    def __post_init__(self) -> None:
        last = self.widths[-1]
        doubled = [self.start << j for j in range(1, 64) if self.start << j < last]
        self.ends = [*doubled, last]

    def runs(self, most: int) -> Iterator[tuple[int, list[int], bool]]:
        """(number of the stage, next widths to go to, whether it begins), few at once."""
        for j, (lo, hi) in enumerate(pairwise([self.start, *self.ends])):
            inside = self.widths[bisect_right(self.widths, lo) : bisect_right(self.widths, hi)]
            stops = inside if inside[-1:] == [hi] else [*inside, hi]
            for first in range(0, len(stops), most):
                yield j, stops[first : first + most], first == 0


class Survivors:
    """The pairs of some queries that may be among the k nearest at a width beyond ``start``."""

    def __init__(
        self,
        bank: Tensor,
        queries: Tensor,
        stages: Stages,
        k: int,
        metric: Metric,
        seeds_QK: Tensor,
        max_pairs: int,
    ) -> None:
        """``seeds_QK``: k different bank rows for each query, the nearer the better."""
        self.bank, self.queries, self.stages = bank, queries, stages
        self.k, self.metric, self.max_pairs = k, metric, max_pairs
        self.norm_QW = prefix_norms(queries, stages.widths)
        self.norm_QJ = prefix_norms(queries, stages.ends)
        self.norm_Q = prefix_norms(queries, [stages.start])[:, 0]
        self.reach_QJ = self._reach(seeds_QK)
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []  # query row, bank row, |x| (P, J)
        self.num_pairs = 0

    @property
    def too_many(self) -> bool:
        return self.num_pairs > self.max_pairs

    def _reach(self, seeds_QK: Tensor) -> Tensor:
        """The largest distance of interest in each stage and in those after it, float64 (Q, J)."""
        # The seeds of each query at each width; the worst of k bounds the k-th best.
        worst_QW = torch.empty_like(self.norm_QW)
        step = max(1, _CHUNK_NUMBERS // (self.k * len(self.stages.widths)))
        for rows in torch.arange(len(seeds_QK), device=seeds_QK.device).split(step):
            pairs = self._pairs(rows.repeat_interleave(self.k), seeds_QK[rows].flatten())
            sums = running_sums(pairs, 0, self.stages.widths)
            score_PW = scores_of(sums, self.norm_QW[pairs.query], self.metric)
            worst_QW[rows] = self._distance(score_PW).view(len(rows), self.k, -1).amax(1)
        last_J = [bisect_right(self.stages.widths, end) for end in self.stages.ends]
        parts = [
            worst_QW[:, lo:hi].amax(1) if hi > lo else worst_QW.new_full((len(worst_QW),), -1.0)
            for lo, hi in pairwise([0, *last_J])
        ]
        least = 1e-9 if self.metric == "cosine" else 1e-300  # squares that vanish
        return torch.stack(parts, 1).mul_(1 + _MARGIN).add_(least)

    def _pairs(self, row_P: Tensor, index_P: Tensor) -> Pairs:
        return Pairs(self.bank, self.queries, self.metric, row_P, index_P)

    def _distance(self, score: Tensor) -> Tensor:
        return 1 - score if self.metric == "cosine" else -score

    def bound(self, block: BankBlock, error_Q: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a filter value at ``start`` must reach (Q,), and odd rows of the block (B,).

        Odd rows have an unusually small part of their norm in the prefix, or none.  The bound
        leaves them out, so that they do not spoil it for the others.
        """
        if self.metric == "l2":
            farthest_Q = self.reach_QJ.amax(1)
            return (self.norm_Q.square() - farthest_Q).float() - error_Q, None
        weight_B, weight_JB = block.weight[0], block.weight[1:]
        part_JB = torch.where(weight_B > 0, weight_JB / weight_B, 0.0)
        odd_B = (part_JB <= _ODD * part_JB.median(1, keepdim=True).values).any(0)
        least_J = part_JB.masked_fill(odd_B, 1.0).amin(1).double()
        limit_QJ = self.reach_QJ * self.norm_QJ / (self.norm_Q[:, None] * least_J)
        bound_Q = self.norm_Q * (1 - limit_QJ.amax(1))
        return bound_Q.nan_to_num(nan=-torch.inf).float() - error_Q, odd_B

    def offer(self, top_QH: Tensor, values_of: ValuesOf, block: BankBlock, error_Q: Tensor) -> None:
        """Take what the bound leaves over of a block, given its values at ``start``."""
        bound_Q, odd_B = self.bound(block, error_Q)
        row, column, _ = above(top_QH, values_of, bound_Q)
        row, column = row[column < len(block)], column[column < len(block)]
        if odd_B is not None and bool(odd_B.any()):
            usual = ~odd_B[column]
            odd = odd_B.nonzero()[:, 0]
            every = torch.arange(len(self.queries), device=row.device)
            row = torch.cat([row[usual], every.repeat_interleave(len(odd))])
            column = torch.cat([column[usual], odd.repeat(len(every))])
        weight_PJ = block.weight[1:, column].T
        norm_PJ = torch.where(weight_PJ > 0, 1 / weight_PJ, 0.0)
        self.found.append((row, column + block.start, norm_PJ))
        self.num_pairs += len(row)

    def ranked(self) -> tuple[Tensor, Tensor]:
        """Scores (W, Q, K), float64, larger is nearer, and indices (W, Q, K), best first."""
        row, index, norm = (torch.cat(part) for part in zip(*self.found, strict=True))
        self.found = []
        order = index.argsort(stable=True)
        order = order[row[order].argsort(stable=True)]  # by query, bank rows ascending
        pairs, norm = self._pairs(row[order], index[order]), norm[order]
        results = []
        for first, last in self._groups(pairs.query):
            ends = torch.tensor([first, last], device=row.device)
            chunk = slice(*torch.searchsorted(pairs.query, ends).tolist())
            results.append(self._rank(pairs[chunk], norm[chunk], first, last))
        scores, indices = zip(*results, strict=True)
        return torch.cat(scores, 1), torch.cat(indices, 1)

    def _groups(self, row_P: Tensor) -> Iterator[tuple[int, int]]:
        """Ranges of queries, each with a bounded number of pairs (or a single query)."""
        most = _CHUNK_NUMBERS // 16
        first, pairs = 0, 0
        counts = torch.bincount(row_P, minlength=len(self.queries)).tolist()
        for q, count in enumerate(counts):
            if q > first and pairs + count > most:
                yield first, q
                first, pairs = q, 0
            pairs += count
        yield first, len(counts)

    def _rank(self, pairs: Pairs, norm: Tensor, first: int, last: int) -> tuple[Tensor, Tensor]:
        """:meth:`ranked` for the queries first..last, whose pairs these are."""
        shape = (len(self.stages.widths), last - first, self.k)
        scores = norm.new_empty(shape, dtype=torch.float64)
        indices = pairs.item.new_empty(shape)
        sums = running_sums(pairs, 0, [self.stages.start])
        at, sums = self.stages.start, tuple(part[:, 0] for part in sums)
        most_widths = max(1, _CHUNK_NUMBERS // (4 * len(pairs)))
        for j, stops, is_new in self.stages.runs(most_widths):
            if is_new:
                keep = self._within_reach(pairs.query, sums, norm, j)
                pairs, norm = pairs[keep], norm[keep]
                sums = tuple(part[keep] for part in sums)
            several = running_sums(pairs, at, stops, sums)
            at, sums = stops[-1], tuple(part[:, -1] for part in several)
            # The last of the stops may be the end of a stage that nobody asked for.
            done = bisect_right(self.stages.widths, at)
            w = slice(done - len(stops) + (self.stages.widths[done - 1] != at), done)
            if w.start < w.stop:
                some = tuple(part[:, : w.stop - w.start] for part in several)
                score_PW = scores_of(some, self.norm_QW[:, w][pairs.query], self.metric)
                self._put_right(score_PW, pairs, w)
                scores[w], indices[w] = best_of_each(
                    pairs.query - first, pairs.item, score_PW, last - first, self.k
                )
        return scores, indices

    def _put_right(self, score_PW: Tensor, pairs: Pairs, w: slice) -> None:
        """What sums of squares that vanished in float64 should have been, at the widths ``w``."""
        if self.metric == "cosine" or self.bank.dtype != torch.float64:
            return
        if within_squares(score_PW):
            return
        doubtful_PW = beyond_squares(score_PW)
        for column in doubtful_PW.any(0).nonzero()[:, 0].tolist():
            those_P = doubtful_PW[:, column]
            m = self.stages.widths[w.start + column]
            score_PW[those_P, column] = pair_scores(pairs[those_P], m, self.norm_Q)

    def _within_reach(
        self, row: Tensor, sums: tuple[Tensor, ...], norm_PJ: Tensor, j: int
    ) -> Tensor:
        """Which pairs (P,) may still be among the k nearest in stage ``j`` or later."""
        reach_PJ = self.reach_QJ[row, j:]
        norm_P = self.norm_QJ[row, j - 1] if j else self.norm_Q[row]
        distance_P = self._distance(
            scores_of(tuple(part[:, None] for part in sums), norm_P[:, None], self.metric)
        )[:, 0]
        if self.metric == "cosine":
            here_P = norm_P * sums[1].sqrt()
            reach_PJ = reach_PJ * self.norm_QJ[row, j:] * norm_PJ[:, j:]
            distance_P = distance_P * here_P
        return (distance_P[:, None] <= reach_PJ * (1 + _MARGIN)).any(1)

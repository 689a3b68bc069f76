"""Scores of single (query, bank row) pairs in float64, and the best of them.

Equal bank rows get equal scores: every pair goes through the same sums, whatever stands beside it.

Shapes: B bank, Q queries, D embedding width, P pairs, C columns, W widths, K neighbours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from mrl.search.distances import beyond_squares, scores_of_differences, within_squares
from mrl.search.scales import scaled

Metric = Literal["cosine", "l2"]
_CACHE_BYTES = 2**20  # of one operand: what is summed at once stays in a core's cache
_QUERY_BYTES = 2**22  # the same of one query's pairs: threads wait for Python between many steps
_LONG, _MANY_PAIRS = 128, 16  # columns, pairs per query
RUN = 32  # columns whose sum is one float32 number
_SAFE_NORMS = 2.0**-300, 2.0**300  # in float64
_MANY_WIDTHS = 8  # in one run of columns; from here on one cumulative sum is cheaper than many


@dataclass(slots=True, frozen=True)
class Pairs:
    """Single pairs of a query and a bank row, sorted by query."""

    bank: Tensor  # (B, D)
    queries: Tensor  # (Q, D)
    metric: Metric
    query: Tensor  # (P,), row of queries
    item: Tensor  # (P,), row of the bank

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, which: Tensor | slice) -> "Pairs":
        """Some of them; a mask (P,), or a range."""
        return replace(self, query=self.query[which], item=self.item[which])


def running_sums(
    pairs: Pairs, start: int, widths: Sequence[int], before: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    """What scores are made of, each float64 (P, W): for cosine <q, x> and |x|^2, else |q - x|^2.

    Args:
        start: columns before it are left out, or come in as
        before: the sums at width ``start``, each (P,).
        widths: ascending, above ``start``.
    """
    chunks = []
    for _, q_PC, x_PC in _rows_of(pairs, start, widths[-1], torch.float64):
        if pairs.metric == "cosine":
            products: tuple[Tensor, ...] = x_PC * q_PC, x_PC.square_()
        else:
            products = (x_PC.sub_(q_PC).square_(),)
        chunks.append([_sums_at(product_PC, start, widths) for product_PC in products])
    sums = tuple(torch.cat(part) for part in zip(*chunks, strict=True))
    if before is not None:
        sums = tuple(part.add_(old[:, None]) for part, old in zip(sums, before, strict=True))
    return sums


def _sums_at(product_PC: Tensor, start: int, widths: Sequence[int]) -> Tensor:
    """Sums of the first columns, (P, W)."""
    ends = [m - start for m in widths]
    if len(ends) >= _MANY_WIDTHS:
        total_PC = product_PC.cumsum(1)
        return total_PC if len(ends) == total_PC.shape[1] else total_PC[:, [e - 1 for e in ends]]
    parts = [product_PC[:, lo:hi].sum(1) for lo, hi in zip([0, *ends], ends, strict=False)]
    return torch.stack(parts, 1).cumsum(1)


def scores_of(sums: tuple[Tensor, ...], norm_PW: Tensor, metric: Metric) -> Tensor:
    """Float64 (P, W), larger is nearer: the cosine, or the squared distance negated.

    Args:
        norm_PW: of the query's prefix; for l2 not used.
    """
    if metric == "l2":
        return sums[0].neg()
    inner_PW, square_PW = sums
    size_PW = square_PW.sqrt()
    zero_PW = (size_PW == 0) | (norm_PW == 0)
    return (inner_PW / (size_PW * norm_PW)).masked_fill_(zero_PW, 0.0)


def pair_scores(pairs: Pairs, m: int, norm_Q: Tensor) -> Tensor:
    """:func:`scores_of` (P,) at one width; ``norm_Q`` are the queries' norms there, float64.

    For cosine both are normalised before they are multiplied, so that parallel rows along an axis,
    which ReLU makes many of at small widths, score exactly the same.

    They are right at any scale: where sums of squares may have left float64's range, rows are
    scaled first, and distances become scores as :mod:`mrl.search.distances` says.
    """
    score_P = norm_Q.new_empty(len(pairs))
    for run, q_PM, x_PM in _rows_of(pairs, 0, m, torch.float64):
        if pairs.metric == "l2":
            score_P[run] = x_PM.sub_(q_PM).square_().sum(1).neg_()
            continue
        norm_P, size_P = norm_Q[pairs.query[run]], x_PM.square().sum(1).sqrt_()
        cosine_P = x_PM.div_(size_P[:, None]).mul_(q_PM / norm_P[: len(q_PM), None]).sum(1)
        doubtful_P = _doubtful(size_P) | _doubtful(norm_P)
        score_P[run] = cosine_P.masked_fill_(doubtful_P, torch.nan)
    if pairs.metric == "cosine":
        doubtful_P = score_P.isnan()
    elif pairs.bank.dtype != torch.float64 or within_squares(score_P):
        return score_P  # squares of narrower types are in float64's range
    else:
        doubtful_P = beyond_squares(score_P)
    if doubtful_P.any():
        score_P[doubtful_P] = _scores_at_any_scale(pairs[doubtful_P], m)
    return score_P


def _doubtful(norm: Tensor) -> Tensor:
    """Which float64 norms are 0 or such that squares may have left the range."""
    return ~((norm >= _SAFE_NORMS[0]) & (norm <= _SAFE_NORMS[1]))


def _scores_at_any_scale(pairs: Pairs, m: int) -> Tensor:
    score_P = torch.empty(len(pairs), dtype=torch.float64, device=pairs.queries.device)
    for run, q_PM, x_PM in _rows_of(pairs, 0, m, torch.float64):
        if pairs.metric == "l2":
            score_P[run] = scores_of_differences(x_PM.sub_(q_PM))
            continue
        q_PM, x_PM = scaled(q_PM, None), scaled(x_PM, None)
        norm_P1, size_P = prefix_norms(q_PM, [m]), x_PM.square().sum(1).sqrt_()
        cosine_P = x_PM.div_(size_P[:, None]).mul_(q_PM / norm_P1).sum(1)
        score_P[run] = cosine_P.nan_to_num_(nan=0.0)  # rows of zeros
    return score_P


def prefix_norms(x: Tensor, widths: Sequence[int]) -> Tensor:
    """Norms of the prefixes of a few rows, float64 (N, W)."""
    square_NC = x[:, : widths[-1]].double().square().cumsum(1)
    return square_NC[:, [m - 1 for m in widths]].sqrt_()


def _rows_of(
    pairs: Pairs, lo: int, hi: int, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some pairs at a time: which, columns lo..hi of their queries (P, C), and of the bank's rows.

    The columns of the queries are (1, C) where the pairs have one query; those of the bank are a
    copy, to be overwritten.
    """
    row_P = pairs.query
    alone = hi - lo >= _LONG and len(row_P) >= _MANY_PAIRS * len(pairs.queries)
    step = max(1, (_QUERY_BYTES if alone else _CACHE_BYTES) // (dtype.itemsize * (hi - lo)))
    runs = [slice(start, start + step) for start in range(0, max(1, len(row_P)), step)]
    if alone:  # copies of the query would take as long to make as those of its neighbours
        ends = torch.unique_consecutive(row_P, return_counts=True)[1].cumsum(0).tolist()
        runs = [
            slice(start, min(start + step, end))
            for first, end in pairwise([0, *ends])
            for start in range(first, end, step)
        ]
    for run in runs:
        row, index = row_P[run], pairs.item[run].to(pairs.bank.device)
        q = pairs.queries[:, lo:hi].index_select(0, row[:1] if alone else row).to(dtype)
        x = pairs.bank[:, lo:hi].index_select(0, index).to(q.device, dtype)
        yield run, q, x


def rank_pairs(
    pairs: Pairs,
    m: int,
    norm_Q: Tensor,
    k: int,
    known: tuple[Tensor, Tensor] | None = None,
    weight_P: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`best_of_each` at one width, ``(scores, indices)``, each (Q, K).

    Scores are computed in float32 first, with a known error; in float64, for three to five times
    the price, only where two of a query's are closer together than that.

    Args:
        pairs: those of a query by bank row.
        norm_Q: of the queries, float64.
        known: scores that were computed before, float64, and their largest errors; each (P,).
        weight_P: for cosine 1 / |x| of the bank's rows in float32, 0 for a zero prefix, if known.
    """
    num_queries = len(pairs.queries)
    if torch.float64 in (pairs.bank.dtype, pairs.queries.dtype):
        score_P = pair_scores(pairs, m, norm_Q)
    else:
        score_P, error_P = known or _float32_scores(pairs, m, norm_Q, weight_P)
        close = _close_to_another(pairs.query, score_P, error_P, num_queries)
        score_P[close] = pair_scores(pairs[close], m, norm_Q)
    scores, indices = best_of_each(pairs.query, pairs.item, score_P[:, None], num_queries, k)
    return scores[0], indices[0]


def _float32_scores(
    pairs: Pairs, m: int, norm_Q: Tensor, weight_P: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores from float32 products, and how far they can be from the float64 ones; both (P,)."""
    # Memory for all at once: small results between large arrays keep these from being given back.
    inner_P1, square_P1 = norm_Q.new_empty(2, len(pairs), 1)
    for run, q_PM, x_PM in _rows_of(pairs, 0, m, torch.float32):
        if pairs.metric == "l2":
            square_P1[run, 0] = sum_in_runs(x_PM.sub_(q_PM).square_())
        elif weight_P is None:
            inner_P1[run, 0] = sum_in_runs(x_PM * q_PM)
            square_P1[run, 0] = sum_in_runs(x_PM.square_())
        else:
            inner_P1[run, 0] = sum_in_runs(x_PM.mul_(q_PM))
    if weight_P is not None:
        square_P1[:, 0] = torch.where(weight_P > 0, 1 / weight_P.double(), 0.0).square_()
    sums = (square_P1,) if pairs.metric == "l2" else (inner_P1, square_P1)
    score_P = scores_of(sums, norm_Q[pairs.query, None], pairs.metric)[:, 0]
    # Of each factor a rounding or two, and RUN of a run's sum: relative to the product of the
    # norms for cosine (half of it again for the bank's norm), to the squared distance for l2.
    relative = 2 * (RUN + 4) * 2.0**-24
    if pairs.metric == "cosine":
        return score_P, torch.full_like(score_P, relative)
    return score_P, -score_P * relative + m * torch.finfo(torch.float32).tiny  # squares that vanish


def sum_in_runs(x_PM: Tensor) -> Tensor:
    """Sums of float32 rows in float64, but for short runs: no more than ``RUN`` roundings."""
    whole = x_PM.shape[1] // RUN * RUN
    runs = x_PM[:, :whole].unflatten(1, (whole // RUN, RUN)).sum(2).double().sum(1)
    return runs + x_PM[:, whole:].sum(1)


def _close_to_another(row_P: Tensor, score_P: Tensor, error_P: Tensor, num_queries: int) -> Tensor:
    """Which pairs cannot be told from their neighbour in the order of scores (P,)."""
    score_QN, place_P = _side_by_side(row_P, score_P, num_queries)
    error_QN, _ = _side_by_side(row_P, error_P, num_queries)
    order = score_QN.sort(1, descending=True)
    score_QN, error_QN = order.values, error_QN.gather(1, order.indices)
    close = score_QN[:, :-1] - score_QN[:, 1:] <= error_QN[:, :-1] + error_QN[:, 1:]
    either = torch.nn.functional.pad(close, (0, 1)) | torch.nn.functional.pad(close, (1, 0))
    return torch.empty_like(either).scatter_(1, order.indices, either)[row_P, place_P]


def _side_by_side(row_P: Tensor, value_P: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
    """Each query's values in its row (Q, N), filled up with -inf, and the place (P,) of each."""
    count_Q = torch.bincount(row_P, minlength=num_queries)
    place_P = rank_in_run(row_P, count_Q)
    value_QN = value_P.new_full((num_queries, int(count_Q.max())), -torch.inf)
    value_QN[row_P, place_P] = value_P
    return value_QN, place_P


def best_of_each(
    row_P: Tensor, index_P: Tensor, score_PW: Tensor, num_queries: int, k: int
) -> tuple[Tensor, Tensor]:
    """The k best of each query at each width, ``(scores, indices)``, each (W, Q, K), best first.

    Args:
        row_P: query of each pair, ascending; each query has at least k pairs.
        index_P: bank row, ascending within a query: of equal scores the first is taken.
    """
    count_Q = torch.bincount(row_P, minlength=num_queries)
    shape = (score_PW.shape[1], num_queries, int(count_Q.max()))
    place_P = rank_in_run(row_P, count_Q)
    score_WQN = score_PW.new_full(shape, -torch.inf)
    score_WQN[:, row_P, place_P] = score_PW.T
    index_QN = index_P.new_zeros(shape[1:])
    index_QN[row_P, place_P] = index_P
    if k == 1:
        # argmax gives the first of several maxima, as torch documents; max need not
        best_WQK = score_WQN.argmax(2, keepdim=True)
        scores_WQK = score_WQN.gather(2, best_WQK)
    else:
        order = score_WQN.sort(dim=2, descending=True, stable=True)
        scores_WQK, best_WQK = order.values[:, :, :k], order.indices[:, :, :k]
    return scores_WQK, index_QN.expand(shape).gather(2, best_WQK)


def rank_in_run(row_P: Tensor, count_Q: Tensor) -> Tensor:
    """0, 1, 2, ... within each run of equal values of a sorted tensor (P,) of row numbers."""
    first_Q = count_Q.cumsum(0) - count_Q
    return torch.arange(len(row_P), device=row_P.device) - first_Q[row_P]

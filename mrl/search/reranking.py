"""The candidates of each query, scored and sorted by a longer prefix.

Shapes: B bank, Q queries, N queries of one block, D embedding width, M prefix width, K candidates.
"""

import numpy as np
import torch
from torch import Tensor

from mrl.nesting import check_granularities
from mrl.search.checks import check_rows
from mrl.search.distances import squared_distances, unusable
from mrl.search.inputs import Matrix, as_pair, check_count, check_metric
from mrl.search.pairs import Metric, Pairs, pair_scores
from mrl.search.scales import scaled
from mrl.search.threads import workers

_BLOCK, _CUDA_BLOCK = 128, 512  # queries that a thread takes at once
_SCRATCH, _CUDA_SCRATCH = 2**21, 2**28  # bytes of float32 rows; on a CPU about what its cache holds
_UNIT = 2.0**-24  # relative error of one float32 rounding
_LEAST_NORM, _MOST_NORM = 2.0**-40, 2.0**50  # whose squares are good in float32
_TINY = 1e-34  # more than what thousands of squares below the smallest float32 add up to


def rerank(
    bank: Matrix,
    queries: Matrix,
    candidates: Tensor | np.ndarray,
    dim: int,
    k: int,
    *,
    metric: Metric = "cosine",
    allow_zero: bool = False,
) -> tuple[Tensor, Tensor]:
    """The best ``k`` of each query's candidates by the first ``dim`` columns.

    Compared are scores in float64, as nested_knn computes them, at any scale of the rows, so equal
    rows tie whatever stands beside them.  Scratch memory of each thread is a few MiB.

    Args:
        bank: (B, D) floating point, tensor or numpy array (memory maps too); not modified.
        queries: (Q, D), of the bank's dtype and device; not modified.
        candidates: (Q, K) int64 bank indices in any order, none twice in a row; -1 stands for
            "none" (FAISS may find fewer than it was asked for); not modified.
        dim: prefix width in 1..D.
        k: 1..K.
        metric: "cosine" or "l2".
        allow_zero: see :func:`adaptive_search`.

    Returns:
        ``(scores, indices)``, each (Q, k), best first, ties by the lower bank index: similarity
        (descending) or squared distance (ascending), float32 (float64 for float64 input). Where a
        query has fewer than k candidates the rest is index -1 with score -inf, or inf for "l2".

    Raises:
        ValueError: for counts or indices out of range; for NaN, infinities, all-zero prefixes.
        TypeError: for candidates that are not int64, or sets of other types than the above.
    """
    bank, queries = as_pair(bank, queries)
    (dim,) = check_granularities([dim], bank.shape[1])
    check_metric(metric)
    candidates_QK = _checked_candidates(candidates, bank, queries)
    check_count("k", k, candidates_QK.shape[1], "the candidates of each query")
    bounds = check_rows("queries", queries, [dim], nonzero=metric == "cosine" and not allow_zero)
    asked = queries[:, :dim]
    if metric == "cosine" and bounds.misfits:
        asked = scaled(asked.double(), None)

    shape = (len(queries), k)
    scores = bank.new_empty(shape, dtype=torch.promote_types(bank.dtype, torch.float32))
    indices = candidates_QK.new_empty(shape)

    step = _CUDA_BLOCK if bank.is_cuda else _BLOCK

    @torch.no_grad()  # grad mode is set for each thread
    def work(start: int) -> None:
        block = slice(start, start + step)
        score_NK, index_NK = _ranked(
            bank[:, :dim],
            asked[block],
            _in_bank_order(candidates_QK[block], start, len(bank)),
            k,
            metric,
            allow_zero,
        )
        scores[block] = squared_distances(score_NK) if metric == "l2" else score_NK
        indices[block] = index_NK

    with workers(bank.is_cuda) as pool:
        for _ in pool.map(work, range(0, len(queries), step)):
            pass
    return scores, indices


def _checked_candidates(candidates: Tensor | np.ndarray, bank: Tensor, queries: Tensor) -> Tensor:
    """Candidates (Q, K) on the bank's device, if each is -1 or a row of the bank."""
    if isinstance(candidates, np.ndarray):
        candidates = torch.from_numpy(np.require(candidates, requirements=["C", "W"]))
    if not isinstance(candidates, Tensor) or candidates.dtype != torch.int64:
        kind = candidates.dtype if isinstance(candidates, Tensor) else type(candidates).__name__
        raise TypeError(f"candidates must be int64 indices of bank rows, got {kind}")
    if candidates.ndim != 2 or len(candidates) != len(queries) or not candidates.numel():
        raise ValueError(
            f"candidates must be (queries, candidates of each), neither 0, got "
            f"{tuple(candidates.shape)} for {len(queries)} queries"
        )
    lowest, highest = (int(index) for index in candidates.aminmax())
    if lowest < -1 or highest >= len(bank):
        raise ValueError(
            f"candidates must lie in 0..{len(bank) - 1} (the rows of the bank) or be -1 (none), "
            f"got {lowest if lowest < -1 else highest}"
        )
    return candidates.to(bank.device)


def _in_bank_order(index_NK: Tensor, first_query: int, num_items: int) -> Tensor:
    """Each query's candidates ascending, so that a stable sort by score breaks ties; -1 last."""
    index_NK = index_NK.masked_fill(index_NK < 0, num_items).sort(dim=1).values
    twice_NK = (index_NK[:, 1:] == index_NK[:, :-1]) & (index_NK[:, 1:] < num_items)
    if twice_NK.any():
        row, column = twice_NK.nonzero()[0].tolist()
        raise ValueError(
            f"query {first_query + row} has candidate {int(index_NK[row, column])} more than once"
        )
    return index_NK.masked_fill(index_NK == num_items, -1)


def _ranked(
    bank_BM: Tensor, queries_NM: Tensor, index_NK: Tensor, k: int, metric: Metric, allow_zero: bool
) -> tuple[Tensor, Tensor]:
    """The k best, ``(scores, indices)``, each (N, k): float64, larger is nearer for l2, too.

    A float32 value tells which candidates cannot be among them; the others are scored in float64.
    """
    norm_N1 = torch.linalg.vector_norm(queries_NM.double(), dim=1, keepdim=True)

    def scores_of(row_P: Tensor, column_P: Tensor) -> Tensor:
        pairs = Pairs(bank_BM, queries_NM, metric, row_P, index_NK[row_P, column_P])
        return pair_scores(pairs, bank_BM.shape[1], norm_N1[:, 0])

    value_NK = _values(bank_BM, queries_NM, index_NK, metric)
    none_NK = index_NK < 0
    odd_NK = unusable(value_NK) & ~none_NK
    if odd_NK.any():  # a filter in float32 says nothing about these
        _refuse_faults(bank_BM, index_NK[odd_NK], metric, allow_zero)
        row_P, column_P = odd_NK.nonzero(as_tuple=True)
        size_P = norm_N1[row_P, 0] if metric == "cosine" else 1.0
        value_NK = value_NK.double()
        value_NK[row_P, column_P] = scores_of(row_P, column_P) * size_P
    value_NK.masked_fill_(none_NK, -torch.inf)
    last_N1 = value_NK.topk(k, dim=1).values[:, -1:]
    size_N1 = norm_N1 if metric == "cosine" else -last_N1  # the error of a sum of squares is
    # relative, so that one bound holds for all that are as near as the last or nearer.
    slack_N1 = (4 * bank_BM.shape[1] + 40) * _UNIT * size_N1.to(value_NK) + _TINY
    row_P, column_P = ((value_NK >= last_N1 - slack_N1) & ~none_NK).nonzero(as_tuple=True)
    score_NK = torch.full(index_NK.shape, -torch.inf, dtype=torch.float64, device=bank_BM.device)
    score_NK[row_P, column_P] = scores_of(row_P, column_P)
    score_NK, order_NK = score_NK.sort(dim=1, descending=True, stable=True)
    return score_NK[:, :k], index_NK.gather(1, order_NK[:, :k])


def _values(bank_BM: Tensor, queries_NM: Tensor, index_NK: Tensor, metric: Metric) -> Tensor:
    """What orders each query's candidates as the metric does, float32 (N, K), larger is nearer.

    <q, x> / |x|, NaN where float32 does not hold |x| well or it is 0; or -|q - x|^2.
    """
    dtype = torch.promote_types(bank_BM.dtype, torch.float32)
    queries_N1M = queries_NM.to(dtype)[:, None]
    value_NK = torch.empty(index_NK.shape, dtype=dtype, device=index_NK.device)
    num_rows = (_CUDA_SCRATCH if bank_BM.is_cuda else _SCRATCH) // (4 * bank_BM.shape[1])
    step_k = max(1, min(num_rows, index_NK.shape[1]))
    step_n = max(1, num_rows // index_NK.shape[1])
    for n in range(0, len(index_NK), step_n):
        for start in range(0, index_NK.shape[1], step_k):
            block = slice(n, n + step_n), slice(start, start + step_k)
            index = index_NK[block].clamp(min=0)
            # From the prefix alone: from whole rows, all columns would be copied.
            x_NKM = bank_BM.index_select(0, index.flatten()).to(dtype).view(*index.shape, -1)
            q_N1M = queries_N1M[block[0]]
            if metric == "l2":
                value_NK[block] = x_NKM.sub_(q_N1M).square_().sum(2).neg_()
                continue
            size_NK = torch.linalg.vector_norm(x_NKM, dim=2)
            odd_NK = ~((size_NK >= _LEAST_NORM) & (size_NK <= _MOST_NORM))
            inner_NK = x_NKM.mul_(q_N1M).sum(2).div_(size_NK)
            value_NK[block] = inner_NK.masked_fill_(odd_NK, torch.nan)
    return value_NK


def _refuse_faults(bank_BM: Tensor, index_P: Tensor, metric: Metric, allow_zero: bool) -> None:
    """Name the first of these bank rows that has NaN, infinities, or no direction."""
    rows = index_P.unique()
    x_PM = bank_BM.index_select(0, rows)
    wrong_P = ~x_PM.isfinite().all(1)
    if metric == "cosine" and not allow_zero:
        wrong_P |= (x_PM == 0).all(1)
    if wrong_P.any():
        row = int(rows[wrong_P][0])
        nonzero = metric == "cosine"
        check_rows("bank", bank_BM[[row]], [bank_BM.shape[1]], nonzero=nonzero, first_row=row)

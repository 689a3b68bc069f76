"""Exact k nearest neighbours at every granularity, in one pass over the columns.

How: a float32 filter, then a float64 referee.  For each block of queries x bank, inner products are
summed over column blocks [m_i, m_i+1), so that all granularities together cost one full-width
product.  Every pair that float32 rounding could still put among the k best is kept, and the kept
pairs (few) are scored again in float64 and ranked.  Hence the answer does not depend on chunk
sizes, threads or the BLAS in use, and equal bank rows really tie; a float32 product alone gives
neither (equal rows may differ in their last bit, which then decides who is nearest).

Shapes: B bank, Q queries, D embedding width, M prefix width, G granularities, K neighbours,
P candidate pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from mrl.nesting import check_granularities
from mrl.search.candidates import MIN_NORM, BankSide, CandidatePool, Metric
from mrl.search.checks import check_norms, check_sets

_MAX_GROUP = 64  # columns whose maximum the filter looks at first
_NORM_ROWS = 8192  # whose norms are computed at once


@torch.no_grad()
def nested_knn(
    bank: Tensor,
    queries: Tensor,
    granularities: Sequence[int],
    k: int = 1,
    metric: Metric = "cosine",
    *,
    query_chunk: int | None = None,
    bank_chunk: int | None = None,
    allow_zero: bool = False,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The exact ``k`` nearest rows of ``bank`` to each query, at every granularity.

    At granularity m both sides are cut to their first m columns; "cosine" then normalises what is
    left.  Scores are compared as computed in float64; where they are equal the lower index wins.

    Args:
        bank: (B, D) floating point; not modified.
        queries: (Q, D), of the bank's dtype and device; not modified.
        granularities: strictly increasing widths in 1..D.
        k: neighbours per query, 1..B.
        metric: "cosine" (similarity, descending) or "l2" (squared distance, ascending).
        query_chunk, bank_chunk: rows per block. Scratch memory of each thread is about 8 bytes x
            query_chunk x bank_chunk, and some 10 MiB per granularity for the referee. The answer
            does not depend on them.
        allow_zero: for cosine, score a prefix of norm below 1e-12 as 0 against everything (as
            ``F.normalize`` does) instead of refusing it.
        progress: show a progress bar over the blocks of queries (needs tqdm).

    Returns:
        ``(scores, indices)``, each (G, Q, k), best first; scores float32 (float64 for float64
        input), indices int64.

    Raises:
        ValueError: naming which of bank or queries, the row and the width, for NaN, infinities or
            all-zero prefixes; for k outside 1..B, empty or mismatched sets, bad granularities.
        TypeError: if the two are not floating-point tensors of one dtype.
    """
    check_sets(bank, queries, k, metric, query_chunk, bank_chunk)
    widths = check_granularities(granularities, bank.shape[1])
    sq_GB, sq_GQ = _square_norms(bank, widths), _square_norms(queries, widths)
    min_norm = MIN_NORM if metric == "cosine" and not allow_zero else 0.0
    check_norms("bank", bank, sq_GB, widths, min_norm)
    check_norms("queries", queries, sq_GQ, widths, min_norm)

    query_chunk = query_chunk or (4096 if bank.is_cuda else 256)
    bank_chunk = bank_chunk or (16384 if bank.is_cuda else 2048)
    shape = (len(widths), len(queries), k)
    scores = bank.new_empty(shape, dtype=torch.promote_types(bank.dtype, torch.float32))
    indices = bank.new_empty(shape, dtype=torch.int64)
    sides = [BankSide.at(bank, m, k, metric, sq_B) for m, sq_B in zip(widths, sq_GB, strict=True)]

    @torch.no_grad()  # grad mode is set for each thread
    def search(start: int) -> None:
        block = slice(start, start + query_chunk)
        pools = [
            CandidatePool(side, queries[block], sq_Q[block], k)
            for side, sq_Q in zip(sides, sq_GQ, strict=True)
        ]
        _fill(pools, bank, queries[block], widths, bank_chunk)
        for g, pool in enumerate(pools):
            scores[g, block], indices[g, block] = pool.ranked()

    starts = range(0, len(queries), query_chunk)
    with _full_float32(), _workers(bank.is_cuda) as workers:
        done = workers.map(search, starts)
        for _ in _with_bar(done, len(starts)) if progress else done:
            pass
    return scores, indices


def _fill(
    pools: list[CandidatePool], bank: Tensor, queries: Tensor, widths: list[int], bank_chunk: int
) -> None:
    """Offer every bank row to the pools, one per granularity, with running inner products."""
    queries = queries.float()
    # Padded to whole groups by columns that can win nothing.
    group = max(1, min(_MAX_GROUP, min(bank_chunk, len(bank)) // (2 * pools[0].k)))
    columns = -(-min(bank_chunk, len(bank)) // group) * group
    value_QB = queries.new_full((len(queries), columns), -torch.inf)
    for start in range(0, len(bank), bank_chunk):
        chunk = bank[start : start + bank_chunk].float()
        inner_QB = queries.new_zeros(len(queries), len(chunk))
        value_QB[:, len(chunk) :] = -torch.inf
        for pool, (lo, hi) in zip(pools, pairwise([0, *widths]), strict=True):
            inner_QB.addmm_(queries[:, lo:hi], chunk[:, lo:hi].T)
            pool.bank.filter_values(inner_QB, start, out=value_QB[:, : len(chunk)])
            pool.offer(value_QB.view(len(queries), group, -1), start)


def _square_norms(x: Tensor, widths: list[int]) -> Tensor:
    """Squared norms of every prefix, float64 (G, N)."""
    blocks = list(pairwise([0, *widths]))
    # In chunks of rows: the bank may be a map of a file that is larger than memory.
    chunks = [
        torch.stack([rows[:, lo:hi].double().square().sum(1) for lo, hi in blocks])
        for rows in x.split(_NORM_ROWS)
    ]
    return torch.cat(chunks, dim=1).cumsum(0)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 products: the filter's error bound assumes 24 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _workers(on_gpu: bool) -> Iterator[ThreadPoolExecutor]:
    """Threads that each take whole blocks of queries, every operation in one thread.

    With the operations themselves split over threads, these wait for each other after each of
    thousands of short steps: 5 to 10 times slower where another program keeps one core busy.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(1 if on_gpu else count) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # Ctrl-C: not the whole queue first
                raise
    finally:
        torch.set_num_threads(count)


def _with_bar(done: Iterator[None], total: int) -> Iterable[None]:
    from tqdm import tqdm  # `import mrl` works without it

    return tqdm(done, total=total, desc="k-NN", unit="block", leave=False)

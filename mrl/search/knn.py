"""Exact k nearest neighbours at every granularity, in one pass over the columns.

How: a float32 filter, then a float64 referee.  For each block of queries x bank, inner products are
summed over column blocks [m_i, m_i+1), so that all granularities together cost one full-width
product.  Every pair that rounding could still put among the k best is kept, and of the kept pairs
(few) those that float32 cannot tell apart are scored in float64.  Hence who is found does not
depend on chunk sizes, threads or the BLAS in use, and equal bank rows really tie; a float32 product
alone gives neither (equal rows may differ in their last bit, which then decides who is nearest).
Only scores that differ by float64's own rounding (1e-15) may come in either order.  Rows that are
too short or too long for float32 squares are scaled for the filter (``passes.py``).

Where a sample shows that it pays, the bank is scanned with a narrow prefix only: prefixes are
nested, so that it bounds the wider ones, and few pairs are left for those (``refine.py``).  Where k
is large, a sample tells about how near the k-th best is; fewer pairs are kept then (``scan.py``).

Shapes: B bank, Q queries, D embedding width, M prefix width, G granularities, K neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mrl.nesting import check_granularities
from mrl.search.block_values import BlockValues, kernel_works
from mrl.search.distances import squared_distances
from mrl.search.inputs import Matrix, as_pair, check_count, check_metric
from mrl.search.pairs import Metric
from mrl.search.passes import Comparison, Pass
from mrl.search.scan import Search
from mrl.search.scan_plan import ScanPlan, choose_plan
from mrl.search.threads import workers

MIN_BYTES, _CPU_BYTES = 2**20, 256 * 2**20
_CUDA_SHARE = 4  # of the GPU's free memory, one part in so many: its steps must be large


@torch.no_grad()
def nested_knn(
    bank: Matrix,
    queries: Matrix,
    granularities: Sequence[int],
    k: int = 1,
    metric: Metric = "cosine",
    *,
    max_bytes: int | None = None,
    allow_zero: bool = False,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The exact ``k`` nearest rows of ``bank`` to each query, at every granularity.

    At granularity m both sides are cut to their first m columns; "cosine" then normalises what is
    left.  Scores are compared as computed in float64; where they are equal the lower index wins.
    This holds at any scale: no squares are lost to the range of float32 or float64, whichever rows
    and prefixes are tiny or huge, and only a prefix of zeros has no direction.

    Args:
        bank: (B, D) floating point, a tensor or an array, which may be mapped from a file that is
            larger than memory; not modified.
        queries: (Q, D), of the bank's dtype; not modified.  The search runs on their device, to
            which the bank is sent block by block.
        granularities: strictly increasing widths in 1..D.
        k: neighbours per query, 1..B.
        metric: "cosine" (similarity, descending) or "l2" (squared distance, ascending).
        max_bytes: about how much memory to use besides the inputs and the result; default 256 MiB,
            on a GPU a quarter of what is free there. The answer does not depend on it.
        allow_zero: for cosine, score a prefix of zeros as 0 against everything instead of refusing
            it.
        progress: show a progress bar over the blocks of the bank (needs tqdm).

    Returns:
        ``(scores, indices)``, each (G, Q, k), best first; scores float32 (float64 for float64
        input), indices int64.  Scores are good to 3e-5 at worst ("l2": relative), and only their
            last digits depend on how the search is split up.  Squared distances that their dtype
            cannot hold are given as 0 or infinity, in the right order all the same.

    Raises:
        ValueError: naming which of bank or queries, the row and the width, for NaN, infinities or
            all-zero prefixes; for k outside 1..B, empty or mismatched sets, bad granularities.
        TypeError: if the two are not floating-point tensors or arrays of one dtype.
    """
    bank, queries = as_pair(bank, queries, one_device=False)
    check_metric(metric)
    check_count("k", k, len(bank), "the rows of the bank")
    if max_bytes is None:
        max_bytes = _default_bytes(queries.device)
    if max_bytes < MIN_BYTES:
        raise ValueError(f"max_bytes must be at least {MIN_BYTES}, got {max_bytes}")
    widths = check_granularities(granularities, bank.shape[1])
    with _full_float32(), workers(queries.is_cuda) as pool:
        passes = Comparison(bank, queries, metric, allow_zero, pool).passes(widths)
        searches = [_search(bank, each, k, metric, max_bytes, pool) for each in passes]
        scores = queries.new_empty(
            len(widths), len(queries), k, dtype=torch.promote_types(queries.dtype, torch.float32)
        )
        indices = torch.empty_like(scores, dtype=torch.int64)
        looks = sum(search.looks(each) for search, each in zip(searches, passes, strict=True))
        with _bar(progress, looks * len(bank)) as bar:
            for search, each in zip(searches, passes, strict=True):
                search.bar = bar
                places = [widths.index(m) for m in each.widths]
                for rows, found, index in search.nearest(each):
                    scores[places, rows] = in_units_of(metric, found, queries.dtype)
                    indices[places, rows] = index
    return scores, indices


def _search(
    bank: Tensor, each: Pass, k: int, metric: Metric, max_bytes: int, pool: ThreadPoolExecutor
) -> Search:
    device, plan = each.queries.device, ScanPlan(None, False)
    if each.scale == 1.0:
        plan = choose_plan(bank, each.queries, each.widths, k, metric)
    values = BlockValues(device, bf16=plan.bf16, kernel=kernel_works(device))
    return Search(
        bank, device, k, metric, max_bytes, values, each.bounds, pool, each.scale, plan.start
    )


def in_units_of(metric: Metric, score: Tensor, dtype: torch.dtype | np.dtype) -> Tensor:
    """Float64 scores, larger is nearer, as they are given out: distances for l2, in float32."""
    if metric == "l2":
        score = squared_distances(score)
    return score if dtype in (torch.float64, np.float64) else score.float()


def _default_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return max(MIN_BYTES, free // _CUDA_SHARE)


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
def _bar(shown: bool, total: int) -> Iterator[Callable[[int], object]]:
    """What to call with the number of bank rows that were gone through."""
    if not shown:
        yield lambda rows: None
        return
    from mrl.progress import progress  # needs tqdm, without which `import mrl` works

    with progress("k-NN", total, "row") as bar:
        yield bar.update

"""A bank spread over the ranks of a process group: each searches its part, all get the best.

Shapes: B rows of this rank's part, Q queries, D embedding width, G granularities, K neighbours.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from mrl.distributed import gather_objects
from mrl.search.inputs import Matrix, as_pair, check_count
from mrl.search.knn import in_units_of, nested_knn
from mrl.search.pairs import Metric, Pairs, pair_scores, prefix_norms


@torch.no_grad()
def sharded_knn(
    bank_part: Matrix,
    queries: Matrix,
    granularities: Sequence[int],
    k: int = 1,
    metric: Metric = "cosine",
    *,
    max_bytes: int | None = None,
    allow_zero: bool = False,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`nested_knn` over the parts of all ranks, which all call this and get the same.

    Args:
        bank_part: (B, D) consecutive rows of the whole bank: rank 0 holds the first, and so on.
            The parts may differ in size, and a part may have no rows.
        queries: (Q, D), the same on every rank.
        granularities, k, metric, max_bytes, allow_zero, progress: see :func:`nested_knn`.

    Returns:
        ``(scores, indices)``, each (G, Q, k), on every rank; indices count the whole bank's rows.

    Raises:
        ValueError: on every rank, if any refuses its part or the queries: with what it said.
    """
    sizes = cast(list[int], gather_objects(len(bank_part)))
    check_count("k", k, sum(sizes), "the rows of the bank over all ranks")
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    found: tuple[Tensor, Tensor] | None = None
    fault = None
    try:
        if len(bank_part):
            _, indices = nested_knn(
                bank_part,
                queries,
                granularities,
                min(k, len(bank_part)),
                metric,
                max_bytes=max_bytes,
                allow_zero=allow_zero,
                progress=progress and rank == 0,
            )
            scores = _exact_scores(bank_part, queries, granularities, indices, metric)
            found = scores.cpu(), indices.cpu() + sum(sizes[:rank])
    except (ValueError, TypeError) as error:
        fault = f"rank {rank} (its first row is row {sum(sizes[:rank])} of the bank): {error}"
    for text in gather_objects(fault):
        if text is not None:
            raise ValueError(str(text))
    parts = [part for part in gather_objects(found) if isinstance(part, tuple)]
    scores, indices = (torch.cat(both, dim=2) for both in zip(*parts, strict=True))
    # Parts come in the order of their rows, and equal scores within one too: stable keeps both.
    order = scores.sort(dim=2, descending=True, stable=True)
    device = queries.device if isinstance(queries, Tensor) else torch.device("cpu")
    best = indices.gather(2, order.indices[:, :, :k]).to(device)
    return in_units_of(metric, order.values[:, :, :k].to(device), queries.dtype), best


def _exact_scores(
    bank_part: Matrix,
    queries: Matrix,
    granularities: Sequence[int],
    index_GQK: Tensor,
    metric: Metric,
) -> Tensor:
    """Scores in float64, which equal rows on two ranks share to the last bit; larger is nearer.

    Within one bank scores from float32 sums are good enough where they are far enough apart.
    """
    bank, queries = as_pair(bank_part, queries, one_device=False)
    norm_QG = prefix_norms(queries, granularities)
    row_P = torch.arange(len(queries), device=queries.device)
    row_P = row_P.repeat_interleave(index_GQK.shape[2])
    scores = [
        pair_scores(Pairs(bank, queries, metric, row_P, index_QK.flatten()), m, norm_QG[:, g])
        for g, (m, index_QK) in enumerate(zip(granularities, index_GQK, strict=True))
    ]
    return torch.stack(scores).view(index_GQK.shape)

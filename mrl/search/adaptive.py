"""Adaptive and funnel retrieval: a shortlist by a short prefix, sorted again by longer ones.

Paper, section 4.3.1 (Figure 8; Tables 11 to 14).

Shapes: B bank, Q queries, D embedding width.
"""

from collections.abc import Sequence

from torch import Tensor

from mrl.nesting import check_granularities
from mrl.search.checks import check_rows
from mrl.search.inputs import Matrix, as_pair, check_count, check_metric
from mrl.search.knn import nested_knn
from mrl.search.pairs import Metric
from mrl.search.prefix_index import PrefixIndex
from mrl.search.reranking import rerank

__all__ = ["adaptive_search", "funnel_search"]


def adaptive_search(
    bank: Matrix,
    queries: Matrix,
    shortlist_dim: int,
    rerank_dim: int,
    shortlist: int = 200,
    k: int = 10,
    *,
    metric: Metric = "cosine",
    index: PrefixIndex | None = None,
    allow_zero: bool = False,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """The ``shortlist`` nearest by the short prefix, then the best ``k`` of them by the longer one.

    Args:
        bank: (B, D) floating point, tensor or numpy array (a memory map is read where needed, not
            loaded); not modified.
        queries: (Q, D), of the bank's dtype and device; not modified.
        shortlist_dim, rerank_dim: D_s <= D_r, both in 1..D.
        shortlist: candidates of the first stage, 1..B (paper: 200).
        k: neighbours per query, 1..shortlist.
        metric: "cosine" (each prefix normalised after the cut) or "l2" (squared distance).
        index: does the first stage, in place of an exact scan; built over this bank's prefix.
        allow_zero: for cosine, score all-zero prefixes 0 instead of refusing them.
        progress: show a progress bar over an exact first stage (needs tqdm).

    Returns:
        ``(scores, indices)``, each (Q, k), best first, as :func:`rerank` gives them.

    Raises:
        ValueError: for widths, counts or an index that do not fit, before any search; for NaN,
            infinities or all-zero prefixes, naming the row.
        TypeError: if the two are not floating-point arrays of one dtype and device.
    """
    bank, queries = as_pair(bank, queries)
    dims = [*check_granularities([shortlist_dim], bank.shape[1])]
    dims += check_granularities([rerank_dim], bank.shape[1])
    if dims[0] > dims[1]:
        raise ValueError(
            f"shortlist_dim {dims[0]} exceeds rerank_dim {dims[1]}: the shortlist comes from the "
            f"shorter prefix"
        )
    return _search(bank, queries, dims, [shortlist], k, metric, index, allow_zero, progress)


def funnel_search(
    bank: Matrix,
    queries: Matrix,
    dims: Sequence[int],
    shortlists: Sequence[int],
    k: int = 10,
    *,
    metric: Metric = "cosine",
    index: PrefixIndex | None = None,
    allow_zero: bool = False,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Adaptive retrieval in steps: the list shrinks while the prefix grows.

    Stage 0 finds ``shortlists[0]`` items by the first ``dims[0]`` columns.  Each later stage cuts
    the OUTPUT of the stage before it to the next shortlist and sorts that by the next width; the
    last gives the ``k`` best.  Paper: dims 16, 32, 64, 128, 256, 2048 with 200, 100, 50, 25, 10.

    Args:
        dims: strictly increasing widths in 1..D.
        shortlists: one for each width but the last, not increasing, each in k..B.
        bank, queries, k, metric, index, allow_zero, progress: see :func:`adaptive_search`, which is
            the funnel of two widths.

    Returns:
        ``(scores, indices)``, each (Q, k), best first.

    Raises:
        ValueError, TypeError: see :func:`adaptive_search`.
    """
    bank, queries = as_pair(bank, queries)
    dims = check_granularities(dims, bank.shape[1])
    lists = list(shortlists)
    if len(lists) != len(dims) - 1:
        raise ValueError(
            f"{len(dims)} widths {dims} need {len(dims) - 1} shortlists (one for each but the "
            f"last), got {lists}"
        )
    return _search(bank, queries, dims, lists, k, metric, index, allow_zero, progress)


def _search(
    bank: Tensor,
    queries: Tensor,
    dims: list[int],
    shortlists: list[int],
    k: int,
    metric: Metric,
    index: PrefixIndex | None,
    allow_zero: bool,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    check_metric(metric)
    counts = [*shortlists, k]  # what each stage hands on
    limit, of_what = len(bank), "the rows of the bank"
    for i, count in enumerate(counts):
        name = "k" if i == len(shortlists) else f"shortlist {i}" if i else "the first shortlist"
        check_count(name, count, limit, of_what)
        limit, of_what = count, "the shortlist before it"
    if index is not None:
        index.check_fits(bank, dims[0], metric)
    check_rows("queries", queries, dims, nonzero=metric == "cosine" and not allow_zero)
    if index is not None:
        scores, indices = index.search(queries, counts[0], allow_zero=allow_zero)
    else:
        scores, indices = nested_knn(
            bank, queries, dims[:1], counts[0], metric, allow_zero=allow_zero, progress=progress
        )
        scores, indices = scores[0], indices[0]
    for m, count in zip(dims[1:], counts[1:], strict=True):
        scores, indices = rerank(
            bank, queries, indices, m, count, metric=metric, allow_zero=allow_zero
        )
    return scores, indices

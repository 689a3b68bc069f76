"""Retrieval at one width, adaptive retrieval and funnels (paper, section 4.3 and appendix E, F).

Measured is the whole grid: every width alone, every pair of a shortlist width and a larger one to
rank the shortlist again, and funnels.  One pass over the bank finds the shortlists of all widths.

Shapes: B bank, Q queries, D embedding width, K neighbours.
"""

from collections.abc import Iterator
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrl.evaluation.class_matching import shared_labels
from mrl.evaluation.contract import Features, Score, WidthsOf
from mrl.evaluation.neighbours import neighbours, num_others
from mrl.progress import counted
from mrl.row_names import MFLOPS, MILLISECONDS, metric_of
from mrl.search import nested_knn
from mrl.search.cost import Plan, mflops_per_query, paper_funnels, validation_plans
from mrl.search.metrics import retrieval_metrics
from mrl.search.reranking import rerank

if TYPE_CHECKING:
    from mrl.config import RetrievalConfig

_REPEATS = 2  # of a timed search; the faster one counts


def run(
    bank: Features, queries: Features, head: WidthsOf, cfg: "RetrievalConfig"
) -> Iterator[Score]:
    """All of :func:`retrieval_metrics` for every plan, its MFLOPs and its measured time per query.

    A funnel's list ends at its last shortlist, so it is judged at the ``cfg.ks`` up to there.

    Raises:
        ValueError: for plans that do not fit the widths or the size of the bank, and for class
            folders of which :func:`shared_labels` can make no labels.
    """
    plans = plans_of(head, cfg)
    _check(plans, cfg, head.embed_dim, num_others(bank, queries))
    bank_labels_B, query_labels_Q = shared_labels(bank.labels, queries.labels, queries.in_bank)
    starts = sorted({plan.dims[0] for plan in plans})
    longest = max(max(cfg.ks), *(size for plan in plans for size in plan.shortlists), 1)
    first = dict(zip(starts, neighbours(bank, queries, starts, longest), strict=True))

    @cache
    def first_stage_ms(m: int, k: int) -> float:
        return _first_stage_ms(bank, queries, m, k, cfg.timed_queries)

    for plan in counted(plans, "retrieval", "plan"):
        m, size = plan.dims[0], (*plan.shortlists, max(cfg.ks))[0]
        started = perf_counter()
        found_QK, ks = _later_stages(plan, first[m], bank, queries, cfg.ks)
        seconds = _seconds_since(started, bank)
        metrics = retrieval_metrics(found_QK, query_labels_Q, bank_labels_B, ks, queries.ids)
        for name, value in metrics.items():
            yield Score(metric_of(name, plan), m, 100 * value, len(queries))
        mflops = mflops_per_query(len(bank), plan.dims, plan.shortlists)
        yield Score(metric_of(MFLOPS, plan), m, mflops, len(queries))
        if cfg.timed_queries:
            later = 1000 * seconds / len(queries) if plan.shortlists else 0.0
            total = first_stage_ms(m, size) + later
            timed = min(cfg.timed_queries, len(queries))
            yield Score(metric_of(MILLISECONDS, plan), m, total, timed)


def plans_of(head: WidthsOf, cfg: "RetrievalConfig") -> list[Plan]:
    """Every width, every pair of widths, and the funnels: ``cfg.funnels``, or the paper's.

    Funnels that the model's widths do not allow are left out of the paper's, not of one's own.
    """
    grid = [p for p in validation_plans(head.granularities, cfg.shortlist) if len(p.dims) <= 2]
    if cfg.funnels is None:
        return [*grid, *paper_funnels(head.granularities, cfg.shortlist, min(cfg.ks))]
    return [*grid, *(Plan(tuple(f.dims), tuple(f.shortlists)) for f in cfg.funnels)]


def _check(plans: list[Plan], cfg: "RetrievalConfig", embed_dim: int, most: int) -> None:
    """Refuse what would fail after the search of the whole bank."""
    key = "evals.retrieval"
    if max(cfg.ks) > most:
        raise ValueError(f"{key}.ks={max(cfg.ks)} is more than the {most} neighbours there are")
    for plan in plans:
        if plan.dims[-1] > embed_dim:
            raise ValueError(
                f"{key}.funnels: width {plan.dims[-1]} of {list(plan.dims)} is above the embedding "
                f"width {embed_dim}"
            )
        if plan.shortlists and plan.shortlists[0] > most:
            raise ValueError(
                f"a shortlist of {plan.shortlists[0]} is more than the {most} neighbours there "
                f"are: set {key}.shortlist lower"
            )


def _later_stages(
    plan: Plan, first_QK: Tensor, bank: Features, queries: Features, ks: list[int]
) -> tuple[Tensor, list[int]]:
    """Places in the bank (Q, K) as the last stage ranks them, and those of ``ks`` up to K."""
    if not plan.shortlists:
        return first_QK[:, : max(ks)], ks
    ks = [k for k in ks if k <= plan.shortlists[-1]]
    found_QK = first_QK[:, : plan.shortlists[0]]
    kept = [*plan.shortlists[1:], max(ks)]
    for m, k in zip(plan.dims[1:], kept, strict=True):
        _, found_QK = rerank(bank.z, queries.z, found_QK, m, k, allow_zero=True)
    return found_QK, ks


def _first_stage_ms(bank: Features, queries: Features, m: int, k: int, count: int) -> float:
    """Milliseconds per query of an exact search at width ``m``, asked ``count`` at once."""
    sample_QD = queries.z[:count]

    def seconds() -> float:
        started = perf_counter()
        nested_knn(bank.z, sample_QD, [m], k, "cosine", allow_zero=True)
        return _seconds_since(started, bank)

    return 1000 * min(seconds() for _ in range(_REPEATS)) / len(sample_QD)


def _seconds_since(started: float, bank: Features) -> float:
    if bank.z.is_cuda:
        torch.cuda.synchronize(bank.z.device)
    return perf_counter() - started

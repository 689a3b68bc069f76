"""How rows name what was measured of a search; evaluators write the names, the report reads them.

A row's granularity is the width of the first stage, and its metric says the quantity and the later
stages: ``"mAP@10"`` alone is one width searched exactly, ``"mAP@10 rerank=2048 K=200"`` adaptive
retrieval (the best 200 ranked again at width 2048), ``"mAP@10 rerank=32-64-2048 K=200-100-50"`` a
funnel.  Quantities with a slash (``ms/query``) have that unit, all others are per cent.
"""

import re

from mrl.search.cost import Plan

MFLOPS, MILLISECONDS, BYTES = "MFLOPs/query", "ms/query", "bytes/item"

_LATER_STAGES = re.compile(r"(.+) rerank=(\d+(?:-\d+)*) K=(\d+(?:-\d+)*)")


def metric_of(quantity: str, plan: Plan) -> str:
    """The metric of a row; its granularity must be ``plan.dims[0]``."""
    if not plan.shortlists:
        return quantity
    widths, lists = (_joined(numbers) for numbers in (plan.dims[1:], plan.shortlists))
    return f"{quantity} rerank={widths} K={lists}"


def parse_metric(metric: str, granularity: int) -> tuple[str, Plan]:
    """Quantity and plan of a row: what :func:`metric_of` put together."""
    found = _LATER_STAGES.fullmatch(metric)
    if found is None:
        return metric, Plan((granularity,))
    widths, lists = (tuple(map(int, found[i].split("-"))) for i in (2, 3))
    return found[1], Plan((granularity, *widths), lists)


def has_stages(metric: str) -> bool:
    """Whether the metric is of a search with later stages."""
    return _LATER_STAGES.fullmatch(metric) is not None


def is_per_cent(metric: str) -> bool:
    """False where the quantity has a unit of its own."""
    return "/" not in metric


def shown(metric: str, value: float) -> str:
    """The value as tables print it: two decimals of a per cent, three digits of other units."""
    if is_per_cent(metric):
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plan_text(plan: Plan) -> str:
    """For people: ``16``, ``16 > 2048`` or ``16 > 32 > 64``."""
    return " > ".join(map(str, plan.dims))


def _joined(numbers: tuple[int, ...]) -> str:
    return "-".join(map(str, numbers))

"""What retrieval rows say: quality and cost of each search, and which no other beats."""

from dataclasses import dataclass

import pandas as pd

from mrl.report.summary import RETRIEVAL, Section, series_of
from mrl.row_names import MFLOPS, MILLISECONDS, parse_metric
from mrl.search.cost import Plan, pareto_front, pick_plan

COSTS = (MFLOPS, MILLISECONDS)


@dataclass(frozen=True)
class Search:
    """One plan of one series: mean quality over seeds in per cent, its spread, mean costs."""

    plan: Plan
    quality: float
    sd: float  # NaN for one seed
    num_seeds: int
    costs: dict[str, float]  # by unit

    @property
    def kind(self) -> str:
        """ "one width", "adaptive" or "funnel"."""
        return ("one width", "adaptive", "funnel")[min(len(self.plan.shortlists), 2)]


def searches_of(section: Section) -> dict[str, list[Search]]:
    """The searches of each series; none where retrieval was not evaluated."""
    quality = section.retrieval_metric
    lines = section.summary[section.summary["evaluator"] == RETRIEVAL]
    found: dict[str, list[Search]] = {}
    parts = dict(list(lines.groupby("series")))
    for name in series_of(lines):
        by_plan: dict[Plan, dict[str, pd.Series]] = {}
        for _, line in parts[name].iterrows():
            quantity, plan = parse_metric(line["metric"], int(line["granularity"]))
            by_plan.setdefault(plan, {})[quantity] = line
        found[name] = [
            _search(plan, of_plan, of_plan[quality])
            for plan, of_plan in by_plan.items()
            if quality in of_plan and MFLOPS in of_plan
        ]
    return found


def _search(plan: Plan, of_plan: dict[str, pd.Series], best: pd.Series) -> Search:
    costs = {unit: float(of_plan[unit]["mean"]) for unit in COSTS if unit in of_plan}
    return Search(plan, float(best["mean"]), float(best["sd"]), int(best["num_seeds"]), costs)


def front_of(searches: list[Search], cost: str) -> list[Search]:
    """The searches that no other beats in quality and ``cost``, cheapest first."""
    measured = [search for search in searches if cost in search.costs]
    return [measured[i] for i in pareto_front([(s.costs[cost], s.quality) for s in measured])]


def exact_of(searches: list[Search]) -> Search:
    """The exact search at the full width.

    Raises:
        ValueError: if there is none among them.
    """
    full = max((search.plan.dims[-1] for search in searches), default=0)
    exact = [search for search in searches if search.plan == Plan((full,))]
    if not exact:
        raise ValueError(
            "the exact search at the full width was not measured: run eval.py 'evals=[retrieval]'"
        )
    return exact[0]


def cheapest(searches: list[Search], cost: str, max_loss: float) -> Search:
    """The cheapest search within ``max_loss`` points of the exact one at the full width.

    Args:
        cost: one of ``COSTS``.

    Raises:
        ValueError: if ``cost`` was not measured, or see ``exact_of`` and ``pick_plan``.
    """
    measured = {search.plan: search for search in searches if cost in search.costs}
    if not measured:
        raise ValueError(f"no search has a measured {cost}")
    candidates = [(plan, search.quality, search.costs[cost]) for plan, search in measured.items()]
    return measured[pick_plan(candidates, exact_of(searches).quality, max_loss)]

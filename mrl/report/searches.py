"""What retrieval rows say: quality and cost of each search, and which no other beats."""

from dataclasses import dataclass

import pandas as pd

from mrl.report.summary import RETRIEVAL, Section, series_of
from mrl.row_names import MFLOPS, MILLISECONDS, parse_metric
from mrl.search.cost import Plan, pareto_front

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
    for name in series_of(lines):
        by_plan: dict[Plan, dict[str, pd.Series]] = {}
        for _, line in lines[lines["series"] == name].iterrows():
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

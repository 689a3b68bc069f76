"""Names of retrieval metrics: what is written is what is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrl.row_names import has_stages, is_per_cent, metric_of, parse_metric, plan_text, shown
from mrl.search.cost import Plan

QUANTITIES = ["top1", "mAP@10", "mAP@10_standard", "P@25", "MFLOPs/query", "ms/query"]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    dims = sorted(draw(st.sets(st.integers(1, 4096), min_size=1, max_size=6)))
    size = len(dims) - 1
    lists = draw(st.lists(st.integers(1, 2048), min_size=size, max_size=size))
    return Plan(tuple(dims), tuple(sorted(lists, reverse=True)))


@given(plans(), st.sampled_from(QUANTITIES))
def test_what_is_written_is_read(plan: Plan, quantity: str) -> None:
    metric = metric_of(quantity, plan)
    assert parse_metric(metric, plan.dims[0]) == (quantity, plan)
    assert has_stages(metric) == (len(plan.dims) > 1)
    assert is_per_cent(metric) == ("/" not in quantity)


@pytest.mark.parametrize(
    ("plan", "metric"),
    [
        (Plan((16,)), "mAP@10"),
        (Plan((16, 2048), (200,)), "mAP@10 rerank=2048 K=200"),
        (Plan((16, 32, 2048), (200, 100)), "mAP@10 rerank=32-2048 K=200-100"),
    ],
    ids=["one width", "adaptive", "funnel"],
)
def test_the_notation(plan: Plan, metric: str) -> None:
    assert metric_of("mAP@10", plan) == metric


def test_for_people() -> None:
    assert plan_text(Plan((16, 32, 2048), (200, 100))) == "16 > 32 > 2048"
    assert shown("mAP@10 rerank=8 K=200", 65.187) == "65.19"
    assert [shown("MFLOPs/query", v) for v in (2623.83, 20.9, 0.0012)] == [
        "2,624",
        "20.9",
        "0.0012",
    ]

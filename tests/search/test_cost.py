"""Costs against the paper's numbers, and the choice of a plan."""

import doctest
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mrl
from mrl.search import cost
from mrl.search.cost import (
    Fit,
    Plan,
    bytes_per_item,
    bytes_per_query,
    fitting,
    mflops_per_query,
    paper_funnels,
    pareto_front,
    pick_plan,
    validation_plans,
)

IMAGENET = 1_281_167
FUNNEL = (16, 32, 64, 128, 256, 2048)
LISTS = (200, 100, 50, 25, 10)


@pytest.mark.parametrize(
    ("dims", "shortlists", "mflops"),
    [
        ((2048,), (), 2623.830016),
        ((16,), (), 20.498672),
        ((16, 2048), (200,), 20.498672 + 0.4096),
        ((16, 128), (200,), 20.498672 + 0.0256),
        (FUNNEL, LISTS, 20.498672 + 0.0064 * 4 + 0.02048),
    ],
)
def test_mflops_as_the_paper_counts(dims, shortlists, mflops):
    assert mflops_per_query(IMAGENET, dims, shortlists) == pytest.approx(mflops, rel=1e-12)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_bytes(dtype, size):
    assert bytes_per_item(500, dtype) == 500 * size
    assert bytes_per_query(1000, (8, 32), (50,), dtype) == (8 * 1000 + 50 * 32) * size


def test_bytes_are_those_of_a_tensor():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8):
        tensor = torch.zeros(3, 7, dtype=dtype)
        assert 3 * bytes_per_item(7, dtype) == tensor.numel() * tensor.element_size()


def test_50_million_items_in_100_gigabytes():
    assert fitting(50_000_000, 100e9, [500], ["float32"]) == [Fit(500, "float32", 100 * 10**9)]
    assert fitting(50_000_000, 100e9 - 1, [500], ["float32"]) == []
    assert fitting(50_000_001, 100e9, [500], ["float32"]) == []


def test_what_fits_is_ordered_by_size_then_width():
    fits = fitting(1000, 40_000, [8, 16, 32], ["float32", "float16", "int8"])
    assert [(fit.width, fit.dtype) for fit in fits] == [
        (32, "int8"),
        (16, "float16"),
        (8, "float32"),
        (16, "int8"),
        (8, "float16"),
        (8, "int8"),
    ]
    assert [fit.bytes for fit in fits] == [32000, 32000, 32000, 16000, 16000, 8000]


@given(
    st.integers(1, 10**9),
    st.integers(0, 10**12),
    st.lists(st.integers(1, 4096), min_size=1, unique=True),
)
def test_what_fits_is_all_that_fits(num_items, available, widths):
    fits = fitting(num_items, available, widths)
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
    wanted = {(m, d) for m in widths for d in sizes if num_items * m * sizes[d] <= available}
    assert {(fit.width, fit.dtype) for fit in fits} == wanted
    assert len(fits) == len(wanted)


def test_the_examples_in_the_docstrings():
    results = doctest.testmod(cost)
    assert results.attempted > 0
    assert results.failed == 0


def test_plans_to_validate():
    plans = validation_plans([8, 16, 32], shortlist=50)
    assert plans == [
        *(Plan((8,)), Plan((16,)), Plan((32,))),
        *(Plan((8, 16), (50,)), Plan((8, 32), (50,)), Plan((16, 32), (50,))),
    ]
    full = validation_plans(mrl.log_spaced(2048))
    assert len(full) == len(set(full)) == 9 + 36 + 4
    assert Plan(FUNNEL, LISTS) in full


def test_funnels_are_the_papers():
    funnels = paper_funnels(mrl.log_spaced(2048))
    assert [plan.dims for plan in funnels] == [
        (8, 16, 32, 64, 128, 2048),
        FUNNEL,
        (32, 64, 128, 256, 512, 2048),
        (64, 128, 256, 512, 1024, 2048),
    ]
    assert {plan.shortlists for plan in funnels} == {LISTS}


def test_funnels_of_other_widths_and_lists():
    assert paper_funnels(mrl.log_spaced(768)) == [
        Plan((12, 24, 48, 96, 192, 768), LISTS),
        Plan((24, 48, 96, 192, 384, 768), LISTS),
    ]
    assert paper_funnels(mrl.uniform(2048, 11)) == []
    assert paper_funnels([8, 16, 32, 64, 128]) == []  # the fifth is the full width
    (short,) = paper_funnels(mrl.log_spaced(256), shortlist=50)
    assert short.shortlists == (50, 25, 12, 10, 10)
    with pytest.raises(ValueError, match="shortlist of 9 cannot give k=10"):
        paper_funnels([8, 16], shortlist=9)


def test_plan_from_lists_is_a_plan():
    plan = Plan([16, 2048], [200])
    assert plan == Plan((16, 2048), (200,))
    assert hash(plan) == hash(Plan((16, 2048), (200,)))
    assert (str(plan), str(Plan((16,)))) == ("16-2048 (shortlist 200)", "16")


@pytest.mark.parametrize(
    ("dims", "shortlists", "message"),
    [
        ((), (), "granularities are empty"),
        ((16, 16), (200,), "strictly increasing"),
        ((32, 16), (200,), r"strictly increasing, got \[32, 16\]"),
        ((0, 16), (200,), "positive"),
        ((16, 32), (), "need 1 shortlists"),
        ((16,), (200,), "need 0 shortlists"),
        ((16, 32, 64), (100, 200), "never grow"),
        ((16, 32), (0,), "positive"),
    ],
)
def test_bad_plans(dims, shortlists, message):
    with pytest.raises(ValueError, match=message):
        Plan(dims, shortlists)
    with pytest.raises(ValueError, match=message):
        mflops_per_query(1000, dims, shortlists)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mflops_per_query(0, (16,)), "bank of 0 items"),
        (lambda: mflops_per_query(100, (16, 32), (200,)), "100 items is too small"),
        (lambda: bytes_per_query(100, (16,), (), "int4"), "unknown dtype 'int4': known are"),
        (lambda: bytes_per_item(0), "width 0"),
        (lambda: fitting(0, 1e9, [8]), "0 items"),
        (lambda: fitting(5, -1, [8]), "-1 bytes"),
        (lambda: fitting(5, math.nan, [8]), "nan bytes"),
        (lambda: fitting(5, 1e9, []), r"widths \[\]"),
        (lambda: fitting(5, 1e9, [8], ["float31"]), "unknown dtype 'float31'"),
    ],
)
def test_bad_counts(call, message):
    with pytest.raises(ValueError, match=message):
        call()


SINGLE, SHORT, LONG = Plan((16,)), Plan((16, 2048), (50,)), Plan((16, 2048), (200,))
MEASURED = [(SINGLE, 0.600, 20.5), (SHORT, 0.648, 20.6), (LONG, 0.6512, 20.9)]


@pytest.mark.parametrize(
    ("max_loss", "wanted"), [(0.1, SINGLE), (0.004, SHORT), (0.001, LONG), (0.0008, LONG)]
)
def test_the_cheapest_plan_that_is_good_enough(max_loss, wanted):
    for candidates in (MEASURED, MEASURED[::-1]):
        assert pick_plan(candidates, 0.652, max_loss) == wanted


def test_loss_just_at_the_limit_and_better_than_the_reference():
    assert pick_plan([(SINGLE, 0.649, 1.0)], 0.65, 0.001) == SINGLE  # 0.65 - 0.649 > 0.001
    assert pick_plan([(SINGLE, 0.7, 1.0)], 0.65, 0.0) == SINGLE


def test_of_equally_cheap_plans_the_better_then_the_first():
    assert pick_plan([(SINGLE, 0.6, 1.0), (LONG, 0.7, 1.0)], 0.6, 0.0) == LONG
    assert pick_plan([(SHORT, 0.6, 1.0), (LONG, 0.6, 1.0)], 0.6, 0.0) == SHORT


@pytest.mark.parametrize(
    ("candidates", "reference", "max_loss", "message"),
    [
        (
            MEASURED,
            0.66,
            0.001,
            r"no plan is within 0.001 .* of 0.66: the best is 16-2048 \(shortlist 200\) with "
            r"0.6512 \(loss 0.0088, cost 20.9\)",
        ),
        ([], 0.66, 0.001, "no plans to pick from"),
        (MEASURED, math.nan, 0.001, "finite reference mAP"),
        (MEASURED, 0.66, -0.001, "loss of 0 or more"),
        ([(SINGLE, math.nan, 1.0)], 0.66, 1, "plan 16 has mAP nan and cost 1.0"),
        ([(SINGLE, 0.6, math.inf)], 0.66, 1, "plan 16 has mAP 0.6 and cost inf"),
    ],
)
def test_nothing_to_pick(candidates, reference, max_loss, message):
    with pytest.raises(ValueError, match=message):
        pick_plan(candidates, reference, max_loss)


def test_pareto_front_by_hand():
    points = [(3.0, 0.7), (1.0, 0.5), (2.0, 0.5), (1.0, 0.4), (4.0, 0.6), (3.0, 0.7)]
    assert pareto_front(points) == [1, 0]
    assert pareto_front([]) == []
    with pytest.raises(ValueError, match="point 1 is not finite"):
        pareto_front([(1.0, 0.5), (math.nan, 0.5)])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20))
def test_pareto_front_is_what_nothing_beats(points):
    def beaten(i):
        return any(
            (c <= points[i][0] and q >= points[i][1] and (c, q) != points[i])
            or ((c, q) == points[i] and j < i)
            for j, (c, q) in enumerate(points)
        )

    wanted = [i for i in range(len(points)) if not beaten(i)]
    assert pareto_front(points) == sorted(wanted, key=lambda i: points[i][0])

"""What a search costs, by count, and which one to choose.

A search is a ``Plan``: every item of the bank is compared at the first width, then each stage ranks
the best of the one before at a larger width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import NamedTuple

from mrl.nesting import check_granularities

BYTES_PER_VALUE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

_ROUNDING = 1e-9  # 0.65 - 0.649 is above 0.001 in floating point


@dataclass(frozen=True, slots=True)
class Plan:
    """One width: ``Plan((2048,))``; adaptive: ``Plan((16, 2048), (200,))``; funnel: more of both.

    ``shortlists[i]`` items are ranked again at ``dims[i + 1]``, as in ``funnel_search``.

    Raises:
        ValueError: unless ``dims`` increase strictly, ``shortlists`` never do, and there is one
            shortlist fewer than widths.
    """

    dims: tuple[int, ...]
    shortlists: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("dims", "shortlists"):  # lists would be equal to no other plan
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_stages(self.dims, self.shortlists)

    def __str__(self) -> str:
        widths = "-".join(map(str, self.dims))
        lists = ", ".join(map(str, self.shortlists))
        return f"{widths} (shortlist {lists})" if lists else widths


def check_stages(dims: Sequence[int], shortlists: Sequence[int]) -> None:
    """Refuse widths and shortlists that are no search; see ``Plan``."""
    check_granularities(dims, max(dims, default=1))
    if len(shortlists) != len(dims) - 1:
        raise ValueError(
            f"{len(dims)} widths {list(dims)} need {len(dims) - 1} shortlists, one for each width "
            f"after the first, got {list(shortlists)}"
        )
    if any(size < 1 for size in shortlists) or any(a < b for a, b in pairwise(shortlists)):
        raise ValueError(f"shortlists must be positive and never grow, got {list(shortlists)}")


def mflops_per_query(num_items: int, dims: Sequence[int], shortlists: Sequence[int] = ()) -> float:
    """(N D_s + sum of K_i D_i) / 1e6, as the paper counts (section 4.3.1 and Figure 8).

    One operation per value compared, none for keeping the best: 2048 values of 1,281,167 items are
    2,624 MFLOPs, and 16 values with 200 items ranked again at 2048 are 20.9.

    Raises:
        ValueError: for an empty bank, shortlists longer than the bank, or no such search.
    """
    return _values_read(num_items, dims, shortlists) / 1e6


def bytes_per_query(
    num_items: int, dims: Sequence[int], shortlists: Sequence[int] = (), dtype: str = "float32"
) -> int:
    """Bytes of the bank that an exact search reads for one query on its own.

    For the first stage this takes the prefixes to lie side by side (a copy of that width, as
    ``PrefixIndex`` keeps); in rows of the full width, memory is read in pieces of 64 bytes or more.

    Raises:
        ValueError: as ``mflops_per_query``, or for an unknown dtype.
    """
    return _values_read(num_items, dims, shortlists) * bytes_per_item(1, dtype)


def bytes_per_item(width: int, dtype: str = "float32") -> int:
    """Bytes that the first ``width`` values of one item take, whatever shorter prefixes it serves.

    int8 is one byte per value; the few scales that go with it are not counted.

    Raises:
        ValueError: for a width below 1 or an unknown dtype.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in BYTES_PER_VALUE:
        raise ValueError(f"unknown dtype {name!r}: known are {', '.join(BYTES_PER_VALUE)}")
    if width < 1:
        raise ValueError(f"a prefix has at least 1 value, got width {width}")
    return width * BYTES_PER_VALUE[name]


class Fit(NamedTuple):
    """A way to store a bank, and the bytes of the whole of it."""

    width: int
    dtype: str
    bytes: int


def fitting(
    num_items: int,
    bytes_available: float,
    widths: Iterable[int],
    dtypes: Sequence[str] = ("float32", "float16", "bfloat16", "int8"),
) -> list[Fit]:
    """The widths and precisions in which a bank fits, largest first (of equals, the widest).

    50 million items at width 500 fit 100 GB in float32, exactly:

    >>> fitting(50_000_000, 100e9, [500, 1000], ["float32"])
    [Fit(width=500, dtype='float32', bytes=100000000000)]

    Returns:
        An empty list if nothing fits.

    Raises:
        ValueError: for no items, no widths, a negative number of bytes, or an unknown dtype.
    """
    widths = list(widths)
    if num_items < 1 or not widths or not bytes_available >= 0:
        raise ValueError(
            f"a budget needs items, widths and bytes, got {num_items} items, widths {widths}, "
            f"{bytes_available} bytes"
        )
    ways = [Fit(m, d, num_items * bytes_per_item(m, d)) for m in widths for d in dtypes]
    fits = [fit for fit in ways if fit.bytes <= bytes_available]
    return sorted(fits, key=lambda fit: (-fit.bytes, -fit.width))


def validation_plans(granularities: Sequence[int], shortlist: int = 200, k: int = 10) -> list[Plan]:
    """The searches to compare on a validation split, as the paper does (appendix E and F).

    Each width alone, each pair D_s < D_r with one shortlist, and the funnels.
    """
    widths = check_granularities(granularities, max(granularities, default=1))
    pairs = [Plan((s, r), (shortlist,)) for s in widths for r in widths if s < r]
    return [*(Plan((m,)) for m in widths), *pairs, *paper_funnels(widths, shortlist, k)]


def paper_funnels(granularities: Sequence[int], shortlist: int = 200, k: int = 10) -> list[Plan]:
    """The paper's funnels that these widths allow: from D_s double four times, then the full width.

    The list is halved from stage to stage and ends at ``k``: for {8, 16, ..., 2048} one of them is
    16-32-64-128-256-2048 with shortlists 200, 100, 50, 25, 10 (section 4.3.1).

    Raises:
        ValueError: for bad widths, or if the shortlist is below ``k``.
    """
    widths = check_granularities(granularities, max(granularities, default=1))
    if not 1 <= k <= shortlist:
        raise ValueError(f"a shortlist of {shortlist} cannot give k={k} results")
    lists = (*(max(k, shortlist // 2**i) for i in range(4)), k)
    doubled = [tuple(m * 2**i for i in range(5)) for m in widths]
    return [
        Plan((*dims, widths[-1]), lists)
        for dims in doubled
        if dims[-1] < widths[-1] and set(dims) <= set(widths)
    ]


def pick_plan(
    candidates: Sequence[tuple[Plan, float, float]], reference: float, max_loss: float
) -> Plan:
    """The cheapest plan whose mAP@10 is at most ``max_loss`` below that of exact full-width search.

    Choose on a validation split and report on the test split.

    Args:
        candidates: (plan, its mAP@10, its cost) each; any one unit of cost, MFLOPs or ms per query.
            Of equally cheap ones the better wins, then the earlier.
        reference: mAP@10 of exact search at the full width, in the unit of the candidates'.
        max_loss: in that unit, too.

    Raises:
        ValueError: if no candidate is good enough (naming the best), there are none, or a number
            is not finite.
    """
    if not candidates:
        raise ValueError("there are no plans to pick from: measure some, e.g. validation_plans()")
    if not (isfinite(reference) and isfinite(max_loss) and max_loss >= 0):
        raise ValueError(
            f"picking needs a finite reference mAP and a loss of 0 or more, got {reference} and "
            f"{max_loss}"
        )
    for plan, quality, cost in candidates:
        if not (isfinite(quality) and isfinite(cost)):
            raise ValueError(f"plan {plan} has mAP {quality} and cost {cost}: measure it again")
    good = [c for c in candidates if reference - c[1] <= max_loss + _ROUNDING]
    if good:
        return min(good, key=lambda c: (c[2], -c[1]))[0]
    plan, quality, cost = max(candidates, key=lambda c: (c[1], -c[2]))
    raise ValueError(
        f"no plan is within {max_loss:g} of the exact full-width mAP@10 of {reference:g}: the best "
        f"is {plan} with {quality:g} (loss {reference - quality:.3g}, cost {cost:g}). Allow more "
        "loss, or measure plans with larger widths or longer shortlists"
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points (cost, quality) that no other beats, cheapest first.

    A point is beaten by one that is as cheap and as good, and better in one of the two; of equal
    points the first is kept.

    Raises:
        ValueError: if a number is not finite.
    """
    for i, point in enumerate(points):
        if not all(map(isfinite, point)):
            raise ValueError(f"point {i} is not finite: {tuple(point)}")
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def _values_read(num_items: int, dims: Sequence[int], shortlists: Sequence[int]) -> int:
    check_stages(dims, shortlists)
    if num_items < max([1, *shortlists]):
        raise ValueError(
            f"a bank of {num_items} items is too small for shortlists {list(shortlists)}"
        )
    later = zip(shortlists, dims[1:], strict=True)
    return num_items * dims[0] + sum(size * m for size, m in later)

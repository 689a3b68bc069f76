"""Retrieval quality against cost, with the front of the searches that no other beats.

As the paper's Figure 8, which has MFLOPs per query only; time per query is beside them.
"""

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mrl.report.searches import COSTS, Search, front_of, searches_of
from mrl.report.style import BY_METHOD, INK, PAPER, RC, SPARE, LineStyle
from mrl.report.summary import BASELINE, Section
from mrl.row_names import MFLOPS, MILLISECONDS, plan_text

PANEL_INCHES = (4.6, 3.4)
LOOKS = {"one width": BY_METHOD["MRL"], "adaptive": SPARE[0], "funnel": BY_METHOD["MRL-E"]}
COST_LABELS = {MFLOPS: "MFLOPs per query", MILLISECONDS: "Measured ms per query"}
FRONT_LABEL = "no other search beats these"
_CUT_BELOW = 0.4  # the y axis is cut where the better three quarters fill less than this part of it


def cost_figure(
    section: Section,
    series: list[str] | None = None,
    costs: tuple[str, ...] = COSTS,
    *,
    found: dict[str, list[Search]] | None = None,
) -> Figure | None:
    """A row for each series that was searched in stages, a column for each cost; None without.

    Args:
        found: what ``searches_of(section)`` gives, where it is known.
    """
    found = searches_of(section) if found is None else found
    names = [n for n in series or found if any(s.plan.shortlists for s in found[n])]
    costs = tuple(c for c in costs if any(c in s.costs for n in names for s in found[n]))
    if not names or not costs:
        return None
    baseline = {} if BASELINE in names else {BASELINE: found.get(BASELINE, [])}
    size = (PANEL_INCHES[0] * len(costs), PANEL_INCHES[1] * len(names) + 0.5)
    with rc_context(RC):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08))
        axes = figure.subplots(len(names), len(costs), squeeze=False)
        for row, name in zip(axes, names, strict=True):
            for ax, cost in zip(row, costs, strict=True):
                _draw(ax, found[name], baseline.get(BASELINE, []), cost)
                ax.set_title(f"{name}, {section.title}" if ax is row[0] else "")
            row[0].set_ylabel(f"{section.retrieval_metric} (%)")
        _add_legend(figure, [s for n in names for s in found[n]], bool(baseline.get(BASELINE)))
        figure.draw_without_rendering()  # settles the places that labels are tried at
        for row, name in zip(axes, names, strict=True):
            for ax, cost in zip(row, costs, strict=True):
                _label(ax, found[name], cost)
    return figure


def _draw(ax: Axes, searches: list[Search], baseline: list[Search], cost: str) -> None:
    front = front_of(searches, cost)
    ax.plot(*_points(front, cost), color=INK, linewidth=1.0, alpha=0.55, zorder=1.5)
    if baseline:
        style = BY_METHOD[BASELINE]
        ax.plot(*_points(baseline, cost), style.marker, ls=style.dashes, color=style.color, ms=4.5)
    for kind, style in LOOKS.items():
        chosen = [search for search in searches if search.kind == kind]
        # Costs that are counted grow with the width; measured ones need not.
        line = style.dashes if kind == "one width" and cost == MFLOPS else "none"
        face = PAPER if kind == "one width" else style.color
        ax.plot(*_points(chosen, cost), ls=line, lw=1.2, mfc=face, **_marks(style))
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(COST_LABELS[cost])
    _set_limits(ax, searches, cost)


def _points(searches: list[Search], cost: str) -> tuple[list[float], list[float]]:
    """Costs and qualities in order of cost."""
    measured = [(s.costs[cost], s.quality) for s in searches if cost in s.costs]
    return [x for x, _ in sorted(measured)], [y for _, y in sorted(measured)]


def _marks(style: LineStyle) -> dict[str, Any]:
    return {"color": style.color, "marker": style.marker, "markersize": 5}


def _set_limits(ax: Axes, searches: list[Search], cost: str) -> None:
    """Room for labels above and left; where a few poor searches squeeze the rest, without them."""
    costs, qualities = _points(searches, cost)
    best, quarter, worst = max(qualities), float(np.quantile(qualities, 0.25)), min(qualities)
    cut = best - quarter < _CUT_BELOW * (best - worst)
    low = quarter if cut else worst
    room = max(best - low, 0.1)
    ax.set_ylim(low - 0.06 * room, best + 0.14 * room)
    ax.set_xlim(min(costs) / (max(costs) / min(costs)) ** 0.22 / 1.1, max(costs) * 1.5)
    below = sum(quality < ax.get_ylim()[0] for quality in qualities)
    if below:
        text = f"{below} of {len(qualities)} searches lie below"
        ax.text(0.99, 0.02, text, transform=ax.transAxes, ha="right", fontsize=8)


def _label(ax: Axes, searches: list[Search], cost: str) -> None:
    """Name what is on the front, above left, and the single widths, below right, where it fits."""
    front = front_of(searches, cost)
    widths = [s for s in searches if not s.plan.shortlists and s not in front]
    placed: list[Annotation] = []
    for search in [*reversed(front), *widths]:
        above = search in front
        text = ax.annotate(
            plan_text(search.plan) if len(search.plan.dims) < 4 else _ends(search),
            (search.costs[cost], search.quality),
            xytext=(-4, 4) if above else (4, -4),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            fontsize=8,
            annotation_clip=True,
        )
        box = text.get_window_extent()
        inside = ax.bbox.x0 <= box.x0 and ax.bbox.y0 <= box.y0
        if inside and not any(box.overlaps(other.get_window_extent()) for other in placed):
            placed.append(text)
        else:
            text.remove()


def _ends(search: Search) -> str:
    """A funnel of many stages: 16 > 32 > ... > 2048."""
    dims = search.plan.dims
    return f"{dims[0]} > {dims[1]} > ... > {dims[-1]}"


def _add_legend(figure: Figure, searches: list[Search], with_baseline: bool) -> None:
    texts = {
        "one width": "one width, exact",
        "adaptive": "shortlist, then ranked again",
        "funnel": "funnel",
    }
    kinds = {search.kind for search in searches}
    handles = [
        Line2D(
            [], [], ls=style.dashes if kind == "one width" else "none",
            mfc=PAPER if kind == "one width" else style.color, label=texts[kind], **_marks(style),
        )
        for kind, style in LOOKS.items()
        if kind in kinds
    ]  # fmt: skip
    if with_baseline:
        style = BY_METHOD[BASELINE]
        label = f"{BASELINE}, a model for each width"
        handles.append(Line2D([], [], ls=style.dashes, label=label, **_marks(style)))
    handles.append(Line2D([], [], color=INK, linewidth=1.0, alpha=0.55, label=FRONT_LABEL))
    columns = max(1, min(len(handles), int(figure.get_figwidth() / 2.3)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)

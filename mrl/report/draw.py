"""Draw one panel: lines with error bars, the width axis, labels at the line ends, the legend."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from mrl.report.style import BY_METHOD, INK, PAPER, LineStyle, readable_ticks, spread_labels
from mrl.report.summary import BASELINE, series_of
from mrl.report.tables import MINUS, PLUS_MINUS

LABEL_GAP_PT = 12.5
DODGE = 0.05  # in octaves; keeps the error bars of series apart
MARKER_SIZE = 5.5
MANY_WIDTHS = 40  # that were not trained: from here on they are a line, not marks


@dataclass(frozen=True)
class Quantity:
    """What the y axis shows: a column of the summary, its error column and their names."""

    column: str
    error: str
    label: str
    error_label: str


ACCURACY = Quantity("mean", "sd", "Top-1 accuracy (%)", f"{PLUS_MINUS}1 sd")
DIFFERENCE = Quantity(
    "difference",
    "difference_se",
    f"Difference to {BASELINE} (points)",
    f"{PLUS_MINUS}1 standard error",
)


def draw_panel(
    ax: Axes, part: pd.DataFrame, quantity: Quantity, styles: dict[str, LineStyle]
) -> None:
    """All series of `part` (summary lines of one panel) on `ax`."""
    if quantity is DIFFERENCE:
        zero = BY_METHOD[BASELINE]
        ax.axhline(0, color=zero.color, linewidth=1.2, linestyle=zero.dashes, zorder=1.5)
        ax.yaxis.set_major_formatter(FuncFormatter(_signed))
    names = series_of(part)
    for place, name in enumerate(names):
        shift = 2 ** (DODGE * (place - (len(names) - 1) / 2))
        _draw_series(ax, part[part["series"] == name], quantity, styles[name], shift)
    _width_axis(ax, part)
    ax.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10], min_n_ticks=4))
    ax.margins(y=0.08)


def _draw_series(
    ax: Axes, line: pd.DataFrame, quantity: Quantity, style: LineStyle, shift: float
) -> None:
    """Trained widths joined by a line; widths that were not trained as hollow marks."""
    hollow = line["interpolated"].to_numpy(dtype=bool)
    looks: list[tuple[Any, dict[str, Any]]] = [
        (~hollow, {"linestyle": style.dashes, "linewidth": 1.7, "markersize": MARKER_SIZE}),
        (hollow, {"linestyle": "none", "markersize": MARKER_SIZE, "markerfacecolor": PAPER}),
    ]
    if hollow.sum() > MANY_WIDTHS:
        curve = line.sort_values("granularity")  # trained widths lie on it, too
        x, y = curve["granularity"] * shift, curve[quantity.column]
        ax.plot(x, y, color=style.color, linewidth=0.8, alpha=0.6)
        looks = [(~hollow, looks[0][1] | {"linestyle": "none"})]
    for chosen, look in looks:
        points = line[chosen].sort_values("granularity")
        if not points.empty:
            ax.errorbar(
                points["granularity"] * shift,
                points[quantity.column],
                yerr=points[quantity.error].fillna(0),
                color=style.color,
                marker=style.marker,
                elinewidth=1.0,
                capsize=2.0,
                **look,
            )


def _width_axis(ax: Axes, part: pd.DataFrame) -> None:
    trained = sorted(part.loc[~part["interpolated"], "granularity"].unique())
    between = sorted(set(part["granularity"]) - set(trained))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(readable_ticks(trained or between)))
    ax.xaxis.set_minor_locator(FixedLocator(between if len(between) <= MANY_WIDTHS else []))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(part["granularity"].min() / 2**0.25, part["granularity"].max() * 2**0.25)


def _signed(value: float, _: int) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:+g}".replace("-", MINUS)


def label_ends(
    ax: Axes, part: pd.DataFrame, quantity: Quantity, styles: dict[str, LineStyle]
) -> None:
    """Name each line right of its end, in its colour, with the labels kept apart.

    The height of `ax` and its limits must be settled before: the places depend on them.
    """
    ends = [
        part[part["series"] == name].sort_values("granularity").iloc[-1] for name in series_of(part)
    ]
    targets = [(end["series"], end["granularity"], end[quantity.column]) for end in ends]
    if quantity is DIFFERENCE:
        targets.insert(0, (BASELINE, ax.get_xlim()[1], 0.0))
    low, high = ax.get_ylim()
    height_pt = ax.get_window_extent().height * 72 / ax.figure.dpi
    heights = spread_labels(
        [(y - low) / (high - low) for _, _, y in targets], LABEL_GAP_PT / height_pt
    )
    for (name, x, y), height in zip(targets, heights, strict=True):
        color = styles[name].color if name in styles else BY_METHOD[BASELINE].color
        ax.annotate(
            name,
            (x, y),
            xytext=(1.05, height),
            textcoords="axes fraction",
            color=color,
            fontweight="bold",
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "lw": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),  # from the left edge of the text, never through it
            },
        )


def add_legend(
    figure: Figure,
    part: pd.DataFrame,
    quantity: Quantity,
    styles: dict[str, LineStyle],
) -> None:
    """Below the panels: the line of each series, the hollow mark and what the bars are.

    Args:
        styles: of the series to name; none: their number stands instead.
    """
    handles = [
        Line2D([], [], color=s.color, linestyle=s.dashes, marker=s.marker, ms=MARKER_SIZE, label=n)
        for n, s in styles.items()
    ]
    if not styles:
        count = part["series"].nunique()
        handles.append(_mark("", f"{count} series, which the tables name"))
    if part["interpolated"].any():
        handles.append(_mark("o", "width not trained", markerfacecolor=PAPER))
    bar = "" if part["num_seeds"].max() == 1 else "|"
    handles.append(_mark(bar, _error_text(part, quantity), markersize=11))
    # About 0.075 inches for a letter at 9 pt, and 0.65 for the mark and the gaps.
    widest = 0.075 * max(len(str(handle.get_label())) for handle in handles) + 0.65
    columns = int(figure.get_figwidth() / widest)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(max(columns, 1), len(handles))
    )


def _mark(marker: str, label: str, **look: Any) -> Line2D:
    look = {"markersize": MARKER_SIZE, "color": INK, **look}
    return Line2D([], [], linestyle="none", marker=marker, label=label, **look)


def _error_text(part: pd.DataFrame, quantity: Quantity) -> str:
    seeds = sorted(part["num_seeds"].unique())
    if seeds == [1]:
        return "n=1 seed: no spread"
    listed = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{quantity.error_label}, {listed} seeds"

"""Accuracy, and the difference to FF, against width. No display and no global pyplot state."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from mrl.report.draw import ACCURACY, DIFFERENCE, Quantity, add_legend, draw_panel, label_ends
from mrl.report.style import RC, line_styles
from mrl.report.summary import MAIN_PANELS, Panel, Section, select

# A second, zoomed row is drawn where the upper widths would fill less than this part of the axis.
ZOOM_BELOW = 0.3
MIN_ZOOM_WIDTHS = 3
MOST_NAMED = 24  # series: more names would leave the lines no room; tables have them all
PANEL_INCHES = (5.0, 3.3)
SINGLE_INCHES = (4.2, 3.0)  # a panel of its own, also read on a phone


def accuracy_figure(section: Section, panels: Sequence[Panel] | None = None) -> Figure:
    """Mean accuracy and spread against width; a column per panel, zoomed below where needed."""
    return _figure(section.summary, panels or figure_panels(section), ACCURACY)


def difference_figure(section: Section, panels: Sequence[Panel] | None = None) -> Figure | None:
    """Difference to FF against width, or None where there is nothing to subtract."""
    summary = section.summary[section.summary["difference"].notna()]
    panels = [p for p in panels or figure_panels(section) if len(select(summary, p))]
    return _figure(summary, panels, DIFFERENCE) if panels else None


def figure_panels(section: Section) -> list[Panel]:
    """What is drawn: linear and 1-NN, or else the first two panels there are."""
    main = [panel for panel in section.panels if panel in MAIN_PANELS]
    return main or section.panels[:2]


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write STEM.png and STEM.svg, and return the two paths."""
    paths = [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    with matplotlib.rc_context(RC):
        figure.savefig(paths[0], dpi=200)
        figure.savefig(paths[1], metadata={"Date": None})
    return paths


def zoom_start(part: pd.DataFrame, column: str) -> int | None:
    """The width from which a zoomed panel should start, or None where one panel is enough."""
    values = part.set_index("granularity")[column]
    full = values.max() - values.min()
    trained = sorted(part.loc[~part["interpolated"], "granularity"].unique())
    for width in trained[1 : 1 - MIN_ZOOM_WIDTHS]:
        upper = values[values.index >= width]
        if upper.max() - upper.min() < ZOOM_BELOW * full:
            return int(width)
    return None


def _figure(summary: pd.DataFrame, panels: Sequence[Panel], quantity: Quantity) -> Figure:
    everything = pd.concat([select(summary, panel) for panel in panels])
    styles = line_styles(everything)
    named = styles if len(styles) <= MOST_NAMED else {}
    with matplotlib.rc_context(RC):
        figure, drawn = _layout(summary, panels, quantity)
        for ax, part in drawn:
            draw_panel(ax, part, quantity, styles)
        add_legend(figure, everything, quantity, named)
        figure.draw_without_rendering()  # settles the heights that labels are placed by
        for ax, part in drawn if named else ():
            label_ends(ax, part, quantity, styles)
    return figure


def _label(quantity: Quantity, panel: Panel) -> str:
    if quantity is not ACCURACY or panel.metric.startswith("top1"):
        return quantity.label
    return f"{panel.quantity[0].upper()}{panel.quantity[1:]} (%)".replace("MAP@", "mAP@")


def _layout(
    summary: pd.DataFrame, panels: Sequence[Panel], quantity: Quantity
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Empty axes, each with the summary lines to draw on it: full range above, zoom below."""
    parts = [select(summary, panel) for panel in panels]
    starts = [zoom_start(part, quantity.column) for part in parts]
    num_rows = 2 if any(start is not None for start in starts) else 1
    width, height = SINGLE_INCHES if len(panels) == 1 else PANEL_INCHES
    size = (width * len(panels), height * num_rows + 0.4)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08))
    axes = figure.subplots(num_rows, len(panels), squeeze=False)
    drawn = []
    for column, (panel, part, start) in enumerate(zip(panels, parts, starts, strict=True)):
        drawn.append((axes[0, column], part))
        axes[0, column].set_title(panel.title)
        if start is not None:
            drawn.append((axes[1, column], part[part["granularity"] >= start]))
            axes[1, column].set_title(f"Zoom: widths {start} and up", fontweight="normal")
        elif num_rows == 2:
            axes[1, column].set_visible(False)
    for ax, _ in drawn:
        ax.set_xlabel("Width (dimensions)")
    for row in axes:
        for ax, panel in zip(row, panels, strict=True):
            if ax is row[0] or panel.quantity != panels[0].quantity:
                ax.set_ylabel(_label(quantity, panel))
    return figure, drawn

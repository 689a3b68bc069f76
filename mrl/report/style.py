"""How figures look: colours that colour-blind readers can tell apart, marks, fonts, label places.

Every series has its own colour, marker and dash pattern, so that a black-and-white print works.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mrl.report.summary import series_of

INK, GRID, PAPER = "#222222", "#e4e4e4", "#ffffff"

RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Liberation Sans", "Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text: searchable, and read aloud
    "svg.hashsalt": "mrl",  # the same rows give the same file
}


@dataclass(frozen=True)
class LineStyle:
    """Colour on paper, its stand-in on a dark page, marker and dashes."""

    color: str
    dark: str
    marker: str
    dashes: Any


# Okabe and Ito's palette. The baseline takes its black, a shade off: matplotlib leaves pure black
# out of an SVG as the default colour, and then a dark page could not replace it.
BY_METHOD = {
    "FF": LineStyle("#010101", "#f2f2f2", "s", (0, (4, 2))),
    "MRL": LineStyle("#0072b2", "#56b4e9", "o", "solid"),
    "MRL-E": LineStyle("#d55e00", "#e69f00", "^", (0, (6, 1.5, 1, 1.5))),
}
SPARE = [
    LineStyle("#009e73", "#2fc79b", "D", (0, (1, 1.5))),
    LineStyle("#cc79a7", "#e3a3c6", "v", (0, (8, 2))),
    LineStyle("#8a6d00", "#f0e442", "P", (0, (3, 1, 1, 1, 1, 1))),
    LineStyle("#56789a", "#9fc5e8", "X", (0, (2, 1))),
]


def line_styles(summary: pd.DataFrame) -> dict[str, LineStyle]:
    """A style for each series: its method's for the first of a method, spare ones after that."""
    free, spare = dict(BY_METHOD), 0
    styles = {}
    method_of = dict(zip(summary["series"], summary["method"], strict=True))
    for name in series_of(summary):
        style = free.pop(method_of[name], None)
        if style is None:
            style = SPARE[spare % len(SPARE)]
            spare += 1
        styles[name] = style
    return styles


def spread_labels(heights: Sequence[float], gap: float) -> list[float]:
    """Heights moved as little as possible (least squares) so that neighbours are `gap` apart.

    The result keeps the order of the input positions and stays within 0..1 where it can.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    # Pool neighbours that are too close: each block [sum, count] sits at its mean.
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):
        blocks.append([heights[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    bases = [total / count for total, count in blocks for _ in range(int(count))]
    highest = max(0.0, 1.0 - (len(bases) - 1) * gap)
    placed = [0.0] * len(bases)
    for rank, (i, base) in enumerate(zip(order, bases, strict=True)):
        placed[i] = min(max(base, 0.0), highest) + rank * gap
    return placed


def readable_ticks(widths: Sequence[int], log2_gap: float = 0.4) -> list[int]:
    """The widths whose labels fit on a log2 axis: from the largest down, none too close."""
    kept: list[int] = []
    for width in sorted(widths, reverse=True):
        if not kept or width * 2**log2_gap <= kept[-1]:
            kept.append(width)
    return kept[::-1]

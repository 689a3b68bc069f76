"""Figures: written, not blank, labelled; labels and ticks keep apart."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_rows import row, write_rows, write_study
from matplotlib.text import Text
from PIL import Image

from mrl.report.figures import accuracy_figure, difference_figure, save_figure, zoom_start
from mrl.report.rows import read_rows
from mrl.report.style import line_styles, readable_ticks, spread_labels
from mrl.report.summary import Panel, select, split_sections


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return split_sections(read_rows([write_study(tmp_path_factory.mktemp("study"))]))[0]


@pytest.mark.parametrize("draw", [accuracy_figure, difference_figure])
def test_png_and_svg_show_every_series_and_width(section, draw, tmp_path):
    png, svg = save_figure(draw(section), tmp_path / "figure")
    pixels = np.asarray(Image.open(png).convert("L"))
    assert pixels.shape[0] > 800
    assert pixels.shape[1] > 1600
    assert 0.005 < (pixels < 200).mean() < 0.3
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text(encoding="utf-8"))
    assert {"FF", "MRL", "MRL-E", "2", "16", "128", "1-NN", "Linear classification"} <= set(texts)


def test_same_rows_same_svg(section, tmp_path):
    panel = section.panels[:1]
    first, second = (
        save_figure(accuracy_figure(section, panel), tmp_path / name)[1].read_text()
        for name in "ab"
    )
    assert first == second


def test_labels_at_line_ends_do_not_overlap(section):
    figure = accuracy_figure(section)
    figure.draw_without_rendering()
    for ax in figure.axes:
        # The extent of the words alone: an annotation's own would take in its leader line.
        boxes = [Text.get_window_extent(text) for text in ax.texts]
        assert len(boxes) == 3
        assert all(box.x1 <= figure.bbox.x1 for box in boxes)
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert not any(a.overlaps(b) for a, b in pairs)


def test_zoom_only_where_low_widths_squeeze_the_rest(section):
    part = select(section.summary, Panel("classify", "top1"))
    assert zoom_start(part, "mean") == 4
    assert zoom_start(part[part["granularity"] >= 16], "mean") is None


def test_difference_needs_a_baseline(tmp_path):
    rows = read_rows([write_rows(tmp_path / "rows.jsonl", [row(), row(granularity=16)])])
    section = split_sections(rows)[0]
    assert difference_figure(section) is None
    assert len(accuracy_figure(section).axes) == 1


def test_series_differ_in_colour_marker_and_dashes(section):
    styles = list(line_styles(section.summary).values())
    for trait in ("color", "dark", "marker", "dashes"):
        assert len({str(getattr(style, trait)) for style in styles}) == len(styles)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.1))
def test_spread_labels_keeps_order_and_gap(heights, gap):
    placed = spread_labels(heights, gap)
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    steps = np.diff([placed[i] for i in order])
    assert (steps >= gap - 1e-9).all()
    assert min(placed) >= -1e-9
    assert max(placed) <= 1 + 1e-9


def test_labels_that_fit_stay_where_they_are():
    assert spread_labels([0.9, 0.1, 0.5], 0.1) == pytest.approx([0.9, 0.1, 0.5])
    assert spread_labels([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])


def test_ticks_thin_out_on_a_uniform_grid():
    assert readable_ticks([8, 16, 32, 64]) == [8, 16, 32, 64]
    assert readable_ticks(range(24, 193, 24)) == [24, 48, 72, 96, 144, 192]


def test_many_series_leave_the_lines_their_room(tmp_path):
    rows = [
        row(method=f"M{i}", experiment=f"m{i}", granularity=width, value=50 + i)
        for i in range(40)
        for width in (8, 16)
    ]
    (section,) = split_sections(read_rows([write_rows(tmp_path / "rows.jsonl", rows)]))
    figure = accuracy_figure(section)
    assert figure.axes[0].get_position().height > 0.5
    words = [text.get_text() for text in figure.findobj(Text)]
    assert "40 series, which the tables name" in words
    assert "M7" not in words

"""Retrieval in the report: a figure and tables of its own, and the accuracy tables without it."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_up_rows import row, write_rows
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mrl.report.figures import accuracy_figure, save_figure
from mrl.report.html import render_page
from mrl.report.rows import read_rows
from mrl.report.search_figure import cost_figure
from mrl.report.searches import front_of, searches_of
from mrl.report.summary import Panel, Section, split_sections
from mrl.report.tables import comparison_tables, markdown_report, section_tables
from mrl.report.write import write_report
from mrl.row_names import metric_of
from mrl.search.cost import Plan, mflops_per_query, validation_plans

WIDTHS = [8 * 2**i for i in range(9)]
BANK = 1_281_167


def quality(plan: Plan, method: str, seed: int) -> float:
    """Plausible: saturates with the widths of both ends."""
    first, last = (65.0 - 60 * (8 / m) ** 1.5 for m in (plan.dims[0], plan.dims[-1]))
    return 0.15 * first + 0.85 * last - 2 * (method == "FF") + 0.1 * seed


def write_grid(root: Path, methods: tuple[str, ...] = ("FF", "MRL"), seeds: int = 2) -> Path:
    rows = [r for m in methods for seed in range(seeds) for r in grid_rows(m, seed)]
    write_rows(root / "rows.jsonl", rows)
    return root


def grid_rows(method: str, seed: int) -> Iterator[dict[str, object]]:
    base = {"method": method, "experiment": method, "seed": seed, "evaluator": "retrieval"}
    for plan in validation_plans(WIDTHS):
        if method == "FF" and plan.shortlists:
            continue
        mflops = mflops_per_query(BANK, plan.dims, plan.shortlists)
        value = quality(plan, method, seed)
        for quantity, number in (
            ("top1", value + 4),
            ("mAP@10", value),
            ("mAP@10_standard", value),
            ("mAP@25", value - 2),
            ("MFLOPs/query", mflops),
            ("ms/query", mflops / 100 + 0.3),
        ):
            if not (plan.shortlists and quantity == "mAP@25" and len(plan.dims) > 2):
                metric = metric_of(quantity, plan)
                yield row(**base, metric=metric, granularity=plan.dims[0], value=number)
    if method == "MRL":
        for m in WIDTHS:
            yield row(**base | {"evaluator": "knn"}, metric="top1_k1", granularity=m, value=60.0)


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Section:
    (only,) = split_sections(read_rows([write_grid(tmp_path_factory.mktemp("grid"))]))
    return only


def test_the_accuracy_tables_have_single_widths_only(section: Section) -> None:
    assert section.panels == [Panel("knn", "top1_k1"), Panel("retrieval", "mAP@10")]
    table = comparison_tables(section)[1]
    assert table.title.endswith("Retrieval, mAP@10 (%)")
    assert [line[0].text for line in table.lines] == [str(m) for m in WIDTHS]
    assert table.header == ["Width", "FF", "MRL", "MRL \u2212 FF"]
    assert {line[3].text for line in table.lines} == {"+2.00"}


def test_searches_are_means_over_seeds(section: Section) -> None:
    found = searches_of(section)
    assert {name: len(searches) for name, searches in found.items()} == {"FF": 9, "MRL": 49}
    assert {search.kind for search in found["MRL"]} == {"one width", "adaptive", "funnel"}
    (one,) = (s for s in found["MRL"] if s.plan == Plan((16, 2048), (200,)))
    assert one.num_seeds == 2
    assert one.quality == pytest.approx(quality(one.plan, "MRL", 0) + 0.05)
    assert one.costs["MFLOPs/query"] == pytest.approx(20.9, abs=0.01)  # as in the paper's Figure 8


def test_nothing_beats_the_front(section: Section) -> None:
    searches = searches_of(section)["MRL"]
    for cost in ("MFLOPs/query", "ms/query"):
        front = front_of(searches, cost)
        assert 2 < len(front) < len(searches)
        for search in searches:
            better = [
                f
                for f in front
                if f.costs[cost] <= search.costs[cost] and f.quality >= search.quality
            ]
            assert better


def test_the_front_has_a_table(section: Section) -> None:
    tables = section_tables(section)
    table = tables[-1]
    assert len(tables) == 3
    assert table.header == ["Widths", "Shortlists", "mAP@10", "MFLOPs/query", "ms/query"]
    costs = [float(line[3].text.replace(",", "")) for line in table.lines]
    assert costs == sorted(costs)
    assert "Exact search at width 2048" in table.markdown()
    assert "2,624 MFLOPs/query" in table.markdown()
    assert "over 2 seeds" in table.markdown()


def texts_of(figure: Figure) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def test_the_figure_shows_every_kind_and_both_costs(section: Section, tmp_path: Path) -> None:
    figure = cost_figure(section)
    assert figure is not None and len(figure.axes) == 2
    shown = texts_of(figure)
    for text in ("MFLOPs per query", "Measured ms per query", "mAP@10 (%)", "funnel"):
        assert text in shown
    assert "FF, a model for each width" in shown
    png, svg = save_figure(figure, tmp_path / "cost")
    assert 0.005 < (np.asarray(Image.open(png).convert("L")) < 200).mean() < 0.3
    assert "MFLOPs per query" in re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text())


def test_labels_keep_apart(section: Section) -> None:
    figure = cost_figure(section)
    assert figure is not None
    figure.draw_without_rendering()
    for ax in figure.axes:
        boxes = [t.get_window_extent() for t in ax.texts if not t.get_text().endswith("below")]
        assert len(boxes) >= 5
        pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]]
        assert not any(a.overlaps(b) for a, b in pairs)


def test_a_row_for_each_series_that_was_searched_in_stages(tmp_path: Path) -> None:
    (section,) = split_sections(read_rows([write_grid(tmp_path, ("FF", "MRL", "MRL-E"), 1)]))
    figure = cost_figure(section)
    assert figure is not None and len(figure.axes) == 4
    (alone,) = split_sections(read_rows([write_grid(tmp_path / "ff", ("FF",), 1)]))
    assert cost_figure(alone) is None


def test_no_retrieval_no_figure(tmp_path: Path) -> None:
    rows = read_rows([write_rows(tmp_path / "rows.jsonl", [row(), row(granularity=16)])])
    (section,) = split_sections(rows)
    assert cost_figure(section) is None
    assert section.retrieval_metric is None
    assert section_tables(section) == comparison_tables(section)


def test_page_and_files(section: Section, tmp_path: Path) -> None:
    rows = read_rows([write_grid(tmp_path / "grid")])
    written = {path.name for path in write_report(rows, tmp_path / "out")}
    assert {"cost.png", "cost.svg", "accuracy.png", "report.html"} <= written
    page = render_page([section], rows)
    assert "49 searches against MFLOPs per query" in page
    assert "49 searches against Measured ms per query" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "retrieval with MRL, mAP@10 (%) and cost" in markdown_report([section])
    assert "rerank=" not in markdown_report([section])


def test_rows_of_retrieval_and_truncation_alone(tmp_path: Path) -> None:
    """As embeddings give them that were made elsewhere."""
    base = {"method": "glove", "experiment": "glove", "evaluator": "truncation"}
    rows = [
        row(**base, metric=metric, granularity=m, value=value)
        for m in (8, 16)
        for metric, value in (("neighbours@10", 50.0), ("mAP@10", 40.0), ("bytes/item", 4.0 * m))
    ]
    found = read_rows([write_rows(tmp_path / "rows.jsonl", rows)])
    (section,) = split_sections(found)
    assert {panel.metric for panel in section.panels} == {"neighbours@10", "mAP@10"}
    labels = [ax.get_ylabel() for ax in accuracy_figure(section).axes]
    assert labels == ["mAP@10 (%)", "Share of the 10 nearest at full width (%)"]
    assert "report.html" in {path.name for path in write_report(found, tmp_path / "out")}


def test_a_curve_of_every_width_stays_readable(tmp_path: Path) -> None:
    rows = [row(granularity=m, evaluator="knn", metric="top1_k1") for m in (8, 512)]
    rows += [row(granularity=m, evaluator="interpolation", metric="top1_k1") for m in range(1, 513)]
    (section,) = split_sections(read_rows([write_rows(tmp_path / "rows.jsonl", rows)]))
    (table,) = comparison_tables(section)
    widths = [int(line[0].text) for line in table.lines]
    assert len(widths) < 30 and {8, 512} <= set(widths)
    assert f"{512 - len(widths)} more such widths are in table.csv" in " ".join(table.notes)
    figure = accuracy_figure(section)
    assert len(figure.axes[0].get_xticks(minor=True)) == 0

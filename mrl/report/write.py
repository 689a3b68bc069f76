"""Write the whole report of some rows into one folder."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mrl.files import write_atomically
from mrl.report.figures import accuracy_figure, difference_figure, save_figure
from mrl.report.html import DEFAULT_TITLE, render_page
from mrl.report.rows import FIELDS
from mrl.report.search_figure import cost_figure
from mrl.report.summary import Section, split_sections
from mrl.report.tables import markdown_report, summary_table


def write_report(rows: pd.DataFrame, out: Path, title: str = DEFAULT_TITLE) -> list[Path]:
    """Write page, tables, joined rows and figures of `rows` (from `read_rows`); returns the paths.

    Files: report.html, table.md, table.csv, rows.csv, accuracy.png and .svg, and, where there is
    an FF baseline, difference.png and .svg, and where there is retrieval, cost.png and .svg. With
    several data sets or splits the figures carry their names: accuracy_cifar10_test.png.
    """
    out.mkdir(parents=True, exist_ok=True)
    sections = split_sections(rows)
    page, markdown = out / "report.html", out / "table.md"
    summary, joined = out / "table.csv", out / "rows.csv"
    write_atomically(page, render_page(sections, rows, title).encode())
    write_atomically(markdown, markdown_report(sections).encode())
    write_atomically(summary, summary_table(sections).to_csv(index=False).encode())
    write_atomically(joined, rows[list(FIELDS)].to_csv(index=False).encode())
    return [page, markdown, summary, joined, *_write_figures(sections, out)]


def _write_figures(sections: Sequence[Section], out: Path) -> list[Path]:
    paths = []
    for section in sections:
        suffix = f"_{section.slug}" if len(sections) > 1 else ""
        paths += save_figure(accuracy_figure(section), out / f"accuracy{suffix}")
        others = {"difference": difference_figure(section), "cost": cost_figure(section)}
        for name, figure in others.items():
            if figure is not None:
                paths += save_figure(figure, out / f"{name}{suffix}")
    return paths

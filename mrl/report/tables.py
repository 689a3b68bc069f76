"""Comparison tables: one line per width, a column per series, the difference to FF beside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from tabulate import tabulate

from mrl.report.searches import COSTS, Search, front_of, searches_of
from mrl.report.summary import BASELINE, METHODS, Panel, Section, series_of
from mrl.row_names import MFLOPS, plan_text, shown

PLUS_MINUS = "\u00b1"
MINUS = "\u2212"
NOT_TRAINED = "\u2020"  # dagger
ABSENT = "\u2013"
MOST_BETWEEN = 24  # widths that were not trained, in one table


@dataclass(frozen=True)
class Cell:
    """One cell: the number, its spread (empty for one seed), the dagger before and notes after."""

    text: str
    spread: str = ""
    dagger: bool = False
    note: str = ""

    def __str__(self) -> str:
        mark = NOT_TRAINED if self.dagger else ""
        return " ".join(part for part in (mark, self.text, self.spread, self.note) if part)


@dataclass(frozen=True)
class Table:
    """A titled table of cells; `notes` say how to read it."""

    title: str
    header: list[str]
    lines: list[list[Cell]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """For a README or a pull request."""
        body = tabulate(
            [[_escape(str(cell)) for cell in line] for line in self.lines],
            headers=[_escape(name) for name in self.header],
            tablefmt="pipe",
            colalign=["right"] * len(self.header),
            disable_numparse=True,
        )
        return "\n\n".join([f"**{_escape(self.title)}**", body, _escape(" ".join(self.notes))])

    def terminal(self) -> str:
        """For a fixed-width font."""
        body = tabulate(
            [[str(cell) for cell in line] for line in self.lines],
            headers=self.header,
            tablefmt="simple",
            colalign=["right"] * len(self.header),
            disable_numparse=True,
        )
        return "\n".join([self.title, "", body, "", *self.notes])


def comparison_tables(section: Section) -> list[Table]:
    """One table per panel of the section, linear classification and 1-NN first."""
    return [_comparison(section, panel) for panel in section.panels]


def section_tables(section: Section) -> list[Table]:
    """All tables of the section: by width, then the searches of each series."""
    return [*comparison_tables(section), *front_tables(section)]


def markdown_report(sections: Sequence[Section]) -> str:
    """All tables, ready to paste into a README; ends with a newline."""
    tables = [table for section in sections for table in section_tables(section)]
    return "\n\n".join(table.markdown() for table in tables) + "\n"


def summary_table(sections: Sequence[Section]) -> pd.DataFrame:
    """The summaries of all sections under each other, unrounded, for CSV."""
    parts = []
    for section in sections:
        part = section.summary.copy()
        part.insert(0, "dataset", section.dataset)
        part.insert(1, "split", section.split)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _comparison(section: Section, panel: Panel) -> Table:
    lines = section.panel(panel)
    series = series_of(lines)
    others = [name for name in series if not _is_baseline(lines, name)]
    compared = others if lines["difference"].notna().any() else []
    usual = int(lines["num_seeds"].mode().iloc[-1])
    by_place = {(row.series, row.granularity): row for row in lines.itertuples()}
    body = []
    for width in shown_widths(lines):
        found = {name: by_place.get((name, width)) for name in series}
        body.append(_line(int(width), found, compared, usual))
    return Table(
        title=f"{section.title}: {panel.title}, {panel.quantity} (%)",
        header=["Width", *series, *(f"{name} {MINUS} {BASELINE}" for name in compared)],
        lines=body,
        notes=_notes(section, panel, lines, usual, bool(compared)),
    )


def shown_widths(lines: pd.DataFrame) -> list[int]:
    """All widths, or of a long list those that were trained and some between."""
    every = {int(width) for width in lines["granularity"]}
    between = sorted(every - {int(w) for w in lines.loc[~lines["interpolated"], "granularity"]})
    step = -(-len(between) // MOST_BETWEEN)
    return sorted(every - set(between) | set(between[:: step or 1]))


def _line(width: int, found: dict[str, Any], compared: list[str], usual: int) -> list[Cell]:
    """One width. The dagger stands at the width where it holds for all cells of the line."""
    present = [row for row in found.values() if row is not None]
    all_interpolated = all(row.interpolated for row in present)
    first = Cell(str(width), dagger=all_interpolated)
    values = [_value_cell(row, usual, not all_interpolated) for row in found.values()]
    differences = [_difference_cell(found[name]) for name in compared]
    return [first, *values, *differences]


def _value_cell(row: Any, usual: int, mark: bool) -> Cell:
    if row is None:
        return Cell(ABSENT)
    spread = "" if pd.isna(row.sd) else f"{PLUS_MINUS} {row.sd:.2f}"
    note = f"(n={row.num_seeds})" if row.num_seeds != usual else ""
    return Cell(f"{row.mean:.2f}", spread, mark and row.interpolated, note)


def _difference_cell(row: Any) -> Cell:
    return Cell(ABSENT if row is None or pd.isna(row.difference) else points(row.difference))


def points(difference: float) -> str:
    """A difference in points with its sign: "+6.67", "-0.20" (true minus), "0.00"."""
    text = f"{difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def _notes(
    section: Section, panel: Panel, lines: pd.DataFrame, usual: int, compared: bool
) -> list[str]:
    notes = [_spread_note(lines, usual), _images_note(section, panel)]
    if compared:
        notes.append(f"Differences to {BASELINE} are in points, between means.")
    if lines["interpolated"].any():
        notes.append(f"{NOT_TRAINED}: a width that was not trained.")
    hidden = lines["granularity"].nunique() - len(shown_widths(lines))
    if hidden:
        notes.append(f"{hidden:,} more such widths are in table.csv.")
    missing = [m for m in METHODS if m not in set(lines["method"])]
    if missing:
        notes.append(f"No rows of {' or '.join(missing)}: left out.")
    baselines = lines.loc[lines["method"] == BASELINE, "series"].nunique()
    if baselines > 1:
        notes.append(f"{baselines} different {BASELINE} baselines: no difference shown.")
    return notes


def _spread_note(lines: pd.DataFrame, usual: int) -> str:
    if lines["num_seeds"].max() == 1:
        return "One seed (n=1): no spread."
    note = f"Mean {PLUS_MINUS} sample standard deviation over {usual} seeds"
    if usual == 1:
        note = f"One seed, or mean {PLUS_MINUS} sample standard deviation over n seeds where said"
    elif lines["num_seeds"].nunique() > 1:
        note += " unless said"
    return note + "."


def _images_note(section: Section, panel: Panel) -> str:
    """How many images were scored; several counts are no fair comparison, so say it."""
    rows = section.rows
    evaluators = rows["evaluator"].isin([panel.evaluator, "interpolation"])
    counts = sorted(rows.loc[evaluators & (rows["metric"] == panel.metric), "n"].unique())
    if len(counts) == 1:
        return f"Measured on {counts[0]:,} images."
    listed = ", ".join(f"{count:,}" for count in counts)
    return f"Careful: not all measured on the same images (numbers of images: {listed})."


def front_tables(section: Section) -> list[Table]:
    """For each series with more than single widths: the plans that no other beats."""
    tables = []
    for name, searches in searches_of(section).items():
        if any(search.plan.shortlists for search in searches):
            tables.append(_front_table(section, name, searches))
    return tables


def _front_table(section: Section, name: str, searches: list[Search]) -> Table:
    front = front_of(searches, MFLOPS)
    units = [unit for unit in COSTS if any(unit in search.costs for search in front)]
    exact = max((s for s in searches if not s.plan.shortlists), key=lambda s: s.plan.dims)
    lines = [_search_line(search, units) for search in front]
    seeds = front[0].num_seeds
    spread = f"{PLUS_MINUS} sample standard deviation over {seeds} seeds." if seeds > 1 else ""
    notes = [
        f"Of {len(searches)} searches those that no other beats in quality and {MFLOPS}.",
        f"Exact search at width {exact.plan.dims[0]}: {exact.quality:.2f} for "
        f"{shown(MFLOPS, exact.costs[MFLOPS])} {MFLOPS}.",
        spread or "One seed (n=1): no spread.",
    ]
    return Table(
        title=f"{section.title}: retrieval with {name}, {section.retrieval_metric} (%) and cost",
        header=["Widths", "Shortlists", str(section.retrieval_metric), *units],
        lines=lines,
        notes=notes,
    )


def _search_line(search: Search, units: list[str]) -> list[Cell]:
    spread = "" if pd.isna(search.sd) else f"{PLUS_MINUS} {search.sd:.2f}"
    return [
        Cell(plan_text(search.plan)),
        Cell(", ".join(map(str, search.plan.shortlists)) or "none"),
        Cell(f"{search.quality:.2f}", spread),
        *(Cell(shown(u, search.costs[u]) if u in search.costs else "") for u in units),
    ]


def _is_baseline(lines: pd.DataFrame, series: str) -> bool:
    return bool((lines.loc[lines["series"] == series, "method"] == BASELINE).all())


def _escape(text: str) -> str:
    """For Markdown, which takes HTML as it is; names are free text."""
    text = " ".join(text.splitlines())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")

"""One self-contained HTML page: figures as inline SVG, tables, and the runs they came from."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import matplotlib
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from mrl.report import style
from mrl.report.figures import accuracy_figure, difference_figure, figure_panels
from mrl.report.rows import SOURCE
from mrl.report.search_figure import COST_LABELS, cost_figure
from mrl.report.searches import COSTS, front_of, searches_of
from mrl.report.summary import (
    BASELINE,
    METHODS,
    RETRIEVAL,
    Panel,
    Section,
    method_rank,
    series_of,
)
from mrl.report.tables import PLUS_MINUS, points, section_tables
from mrl.row_names import plan_text, shown

DEFAULT_TITLE = "Matryoshka representations: accuracy against width"
NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class InlineFigure:
    """One figure of the page and its caption."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Config:
    """A config.yaml and the runs that share it up to the seed."""

    summary: str
    text: str


def render_page(sections: Sequence[Section], rows: pd.DataFrame, title: str = DEFAULT_TITLE) -> str:
    """The whole page. `rows` as from `read_rows`: their files lead to the config of each run."""
    template = files("mrl.report").joinpath("template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        title=title,
        sections=[_section_view(section) for section in sections],
        runs=list_runs(rows),
        configs=list_configs(rows),
        colors=_palette(),
    )


def _section_view(section: Section) -> dict[str, object]:
    figures = []
    for panel in figure_panels(section):
        for kind, figure in (
            ("accuracy", accuracy_figure(section, [panel])),
            ("difference", difference_figure(section, [panel])),
        ):
            if figure is not None:
                figures.append(_inline_figure(section, panel, kind, figure))
    figures += _cost_figures(section)
    missing = [m for m in METHODS if m not in set(section.summary["method"])]
    return {
        "title": section.title,
        "slug": section.slug,
        "figures": figures,
        "tables": section_tables(section),
        "findings": [text for panel in section.panels for text in findings(section, panel)],
        "missing": " and ".join(missing),
    }


def findings(section: Section, panel: Panel) -> list[str]:
    """A sentence per series: its difference to FF at the lowest and the highest common width."""
    lines = section.panel(panel)
    lines = lines[lines["difference"].notna() & ~lines["interpolated"]]
    sentences = []
    for name in series_of(lines):
        line = lines[lines["series"] == name].sort_values("granularity")
        ends = [line.iloc[0]] if len(line) == 1 else [line.iloc[0], line.iloc[-1]]
        parts = [f"{points(e['difference'])} points at width {e['granularity']}" for e in ends]
        sentences.append(f"{panel.title}, {name} against {BASELINE}: {', '.join(parts)}.")
    return sentences


def _inline_figure(section: Section, panel: Panel, kind: str, figure: Figure) -> InlineFigure:
    lines = section.panel(panel)
    names = series_of(lines)
    bars = f"Bars: {PLUS_MINUS}1 sample standard deviation over seeds."
    what = f"{panel.title}, {section.title}: {panel.quantity} against width for {', '.join(names)}."
    if kind == "difference":
        what = f"{panel.title}, {section.title}: difference of the means to {BASELINE}, in points."
        bars = f"Bars: {PLUS_MINUS}1 standard error of the difference."
    if lines["num_seeds"].max() == 1:
        bars = "One seed (n=1): no bars."
    label = f"{what} {_in_words(lines, kind)}"
    prefix = f"{section.slug}-{panel.evaluator}-{panel.metric}-{kind}"
    return InlineFigure(inline_svg(figure, prefix, label), f"{what} {bars}")


def _cost_figures(section: Section) -> list[InlineFigure]:
    """Retrieval quality against each cost, for each series that was searched in stages."""
    figures = []
    found = searches_of(section)
    for place, (name, searches) in enumerate(found.items()):
        for cost in COSTS:
            figure = cost_figure(section, [name], (cost,), found=found)
            if figure is None:
                continue
            front = front_of(searches, cost)
            what = (
                f"Retrieval with {name}, {section.title}: {section.retrieval_metric} of "
                f"{len(searches)} searches against {COST_LABELS[cost]}."
            )
            label = f"{what} " + "; ".join(
                f"{plan_text(s.plan)}: {s.quality:.2f} for {shown(cost, s.costs[cost])}"
                for s in front
            )
            prefix = f"{section.slug}-{RETRIEVAL}-{place}-{COSTS.index(cost)}"
            caption = f"{what} Labels name the widths: shortlist > ranked again."
            figures.append(InlineFigure(inline_svg(figure, prefix, f"{label}."), caption))
    return figures


def _in_words(lines: pd.DataFrame, kind: str) -> str:
    """The figure for those who cannot see it: the values at both ends of each line."""
    column = "difference" if kind == "difference" else "mean"
    lines = lines[lines[column].notna()].sort_values("granularity")
    words = []
    for name in series_of(lines):
        line = lines[lines["series"] == name]
        first, last = line.iloc[0], line.iloc[-1]
        words.append(
            f"{name} from {first[column]:.2f} at width {first['granularity']} "
            f"to {last[column]:.2f} at width {last['granularity']}"
        )
    return "; ".join(words) + "."


def inline_svg(figure: Figure, prefix: str, label: str) -> Markup:
    """The figure as an <svg> element: ids made unique, colours as CSS variables, a text label."""
    stream = io.StringIO()
    with matplotlib.rc_context(style.RC):
        figure.savefig(stream, format="svg", metadata=NO_METADATA)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg).replace("url(#", f"url(#{prefix}-")
    for name, (light, _) in _palette().items():
        svg = svg.replace(light, f"var(--{name})")
    # The page's own size rules apply; the view box keeps the proportions.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))


def _palette() -> dict[str, tuple[str, str]]:
    """CSS variable -> (colour on a light page, colour on a dark page)."""
    palette = {
        "paper": (style.PAPER, "#15171a"),
        "ink": (style.INK, "#e8e8e8"),
        "grid": (style.GRID, "#33373d"),
    }
    lines = [*style.BY_METHOD.values(), *style.SPARE]
    return palette | {f"line{i}": (line.color, line.dark) for i, line in enumerate(lines)}


def list_runs(rows: pd.DataFrame) -> list[dict[str, object]]:
    """What each run was: method, seed, commits, data, trained widths, number of images."""
    runs = []
    keys = ["method", "experiment", "run", "seed", "dataset", "split"]
    for values, part in _sorted_groups(rows, keys):
        runs.append(
            dict(zip(keys, values, strict=True))
            | {
                "widths": ", ".join(map(str, _trained_widths(part))),
                "n": ", ".join(f"{n:,}" for n in sorted(set(part["n"]))),
                "commit": ", ".join(commit[:10] for commit in sorted(set(part["commit"]))),
            }
        )
    return runs


def _sorted_groups(rows: pd.DataFrame, keys: list[str]) -> list[tuple[tuple, pd.DataFrame]]:
    """Groups in reading order: method, experiment, widths, seed."""
    groups = [(values, part) for values, part in rows.groupby(keys)]
    first = [part.iloc[0] for _, part in groups]
    order = sorted(
        range(len(groups)),
        key=lambda i: (
            method_rank(first[i]["method"]),
            first[i]["experiment"],
            _trained_widths(groups[i][1]),
            first[i]["seed"],
        ),
    )
    return [groups[i] for i in order]


def _trained_widths(part: pd.DataFrame) -> list[int]:
    return sorted(set(part.loc[part["evaluator"] != "interpolation", "granularity"]))


def list_configs(rows: pd.DataFrame) -> list[Config]:
    """The config.yaml beside the rows of each run; runs that differ by seed alone share one."""
    groups: dict[str, list[pd.Series]] = {}
    texts: dict[str, str] = {}
    for (source,), part in _sorted_groups(rows, [SOURCE]):
        path = Path(source).parent / "config.yaml"
        # Beside a file that joins several runs, a config could be that of one of them only.
        if part["run"].nunique() != 1 or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        shape = re.sub(r"(seed\D{0,2})\d+", r"\1", text)
        texts.setdefault(shape, text)
        groups.setdefault(shape, []).append(part.iloc[0])
    configs = []
    for shape, members in groups.items():
        seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in members}))
        first = members[0]
        summary = f"{first['method']}: {first['experiment']} ({first['run']}), seeds {seeds}"
        configs.append(Config(summary, texts[shape]))
    return configs

"""The page: self-contained and well-formed, and as a real browser shows it."""

import re
import shutil
from collections import Counter
from html.parser import HTMLParser

import pytest
from made_up_rows import row, write_rows, write_study

from mrl.report.html import list_configs, list_runs, render_page
from mrl.report.rows import read_rows
from mrl.report.summary import split_sections

VOID = {"meta", "br", "link", "img", "input", "hr"}


def page_of(*sources) -> str:
    rows = read_rows(sources)
    return render_page(split_sections(rows), rows, title="Study <1>")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), seeds=2)


@pytest.fixture(scope="module")
def page(study):
    return page_of(study)


class Outline(HTMLParser):
    """Checks that tags nest, and collects ids and references."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids[value] += 1
            elif name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.references.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_self_contained_and_well_formed(page):
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert [name for name, count in outline.ids.items() if count > 1] == []
    assert all(reference.startswith("#") for reference in outline.references)
    assert {reference[1:] for reference in outline.references} <= set(outline.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(outline.ids)
    assert "@import" not in page
    assert "<script" not in page


def test_says_what_and_from_where(page):
    assert "Study &lt;1&gt;" in page
    assert "Matryoshka Representation Learning (MRL)" in page
    assert "+6.60 points at width 2, \u22120.20 points at width 128" in page
    assert page.count("<svg ") == page.count('role="img"') == 4
    assert re.search(r'aria-label="Linear classification, .*FF from 83\.05 at width 2', page)
    assert "18 runs" in page
    assert "granularities: [2, 4, 8, 16, 32, 64, 128]" in page
    assert "0123456789" in page


def test_runs_are_in_reading_order(study):
    runs = list_runs(read_rows([study]))
    assert [run["method"] for run in runs] == ["FF"] * 14 + ["MRL"] * 2 + ["MRL-E"] * 2
    assert [run["widths"] for run in runs[:6:2]] == ["2", "4", "8"]


def test_configs_that_differ_by_seed_alone_are_shown_once(study):
    configs = list_configs(read_rows([study]))
    assert len(configs) == 7 + 1 + 1
    assert all("seeds 0, 1" in config.summary for config in configs)


def test_one_series_without_config(tmp_path):
    page = page_of(write_rows(tmp_path / "rows.jsonl", [row(), row(granularity=16)]))
    assert "There are no rows of FF and MRL-E here" in page
    assert "No config.yaml stood beside these rows" in page
    assert "One seed (n=1): no bars." in page


def test_text_from_rows_is_escaped(tmp_path):
    bad = "<img src=x onerror=alert(1)>"
    rows = [row(experiment=bad, run=bad), row(experiment="other", run="other", dataset=bad)]
    rows.append(row(experiment="third", run="third"))
    assert "<img" not in page_of(write_rows(tmp_path / "rows.jsonl", rows))


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium of the system, driven by Playwright."""
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    if binary is None:
        pytest.skip("no Chromium to open the report with: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=binary, args=arguments)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_real_browser(browser, page, tmp_path, width, scheme):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab = context.new_page()
    problems, requests = [], []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("requestfailed", lambda request: problems.append(request.url))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    assert problems == []
    assert requests == [file.as_uri()]
    assert tab.locator("table.numbers").count() == 2
    for table in tab.locator("table.numbers").all():
        assert table.locator("tbody tr").count() == 13
        assert table.locator("thead th[scope=col]").count() == 6
        assert table.locator("tbody th[scope=row]").count() == 13
    figures = tab.locator("figure svg").all()
    assert len(figures) == 4
    for figure in figures:
        box = figure.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 300
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert _contrast(tab) > 7
    tab.locator("summary").first.click()
    assert tab.locator("table.runs tbody tr").count() == 18
    assert tab.locator("table.runs").is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def _contrast(tab) -> float:
    """WCAG contrast of the FF label in a figure against the page: dark mode has to reach both."""
    texts = tab.locator("figure svg text").get_by_text("FF", exact=True)
    ink = texts.first.evaluate("element => getComputedStyle(element).fill")
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    levels = sorted(_luminance(color) for color in (ink, paper))
    return (levels[1] + 0.05) / (levels[0] + 0.05)


def _luminance(color: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

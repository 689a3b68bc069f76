"""Means, spread and differences against hand-computed numbers; nothing is averaged in silence."""

import math

import pytest
from made_up_rows import row, write_rows, write_study

from mrl.report.rows import read_rows
from mrl.report.summary import Panel, split_sections
from mrl.report.tables import comparison_tables, markdown_report, points

CLASSIFY = Panel("classify", "top1")


def sections_of(tmp_path, rows):
    return split_sections(read_rows([write_rows(tmp_path / "rows.jsonl", rows)]))


def ff(**changes):
    return row(method="FF", experiment="ff", run=f"ff/seed{changes.get('seed', 0)}", **changes)


def mrl(**changes):
    return row(run=f"mrl/seed{changes.get('seed', 0)}", **changes)


def lines_of(section, panel=CLASSIFY):
    return section.panel(panel).set_index("series")


def test_mean_sd_and_difference_by_hand(tmp_path):
    rows = [ff(seed=s, value=v) for s, v in enumerate((80.0, 82.0, 84.0))]
    rows += [mrl(seed=s, value=v) for s, v in enumerate((90.0, 91.0))]
    lines = lines_of(sections_of(tmp_path, rows)[0])
    assert lines.loc["FF", ["mean", "sd", "num_seeds"]].tolist() == [82.0, 2.0, 3]
    assert lines.loc["MRL", "mean"] == 90.5
    assert lines.loc["MRL", "sd"] == pytest.approx(math.sqrt(0.5))
    assert lines.loc["MRL", "difference"] == 8.5
    assert lines.loc["MRL", "difference_se"] == pytest.approx(math.sqrt(0.5 / 2 + 4 / 3))
    assert math.isnan(lines.loc["FF", "difference"])


def test_table_cells(tmp_path):
    rows = [ff(seed=s, value=v) for s, v in enumerate((80.0, 82.0, 84.0))]
    rows += [mrl(seed=s, value=v) for s, v in enumerate((81.0, 82.0))]
    (table,) = comparison_tables(sections_of(tmp_path, rows)[0])
    assert table.header == ["Width", "FF", "MRL", "MRL \u2212 FF"]
    assert [str(cell) for cell in table.lines[0]] == [
        "8",
        "82.00 \u00b1 2.00",
        "81.50 \u00b1 0.71 (n=2)",
        "\u22120.50",
    ]
    notes = " ".join(table.notes)
    assert "sample standard deviation over 3 seeds unless said" in notes
    assert "10,000 images" in notes
    assert "No rows of MRL-E" in notes


def test_one_seed_says_so(tmp_path):
    (table,) = comparison_tables(sections_of(tmp_path, [ff(value=80.0), mrl(value=81.0)])[0])
    assert [str(cell) for cell in table.lines[0]] == ["8", "80.00", "81.00", "+1.00"]
    assert any("n=1" in note for note in table.notes)


def test_without_ff_there_is_no_difference(tmp_path):
    (table,) = comparison_tables(sections_of(tmp_path, [mrl()])[0])
    assert table.header == ["Width", "MRL"]
    assert any("No rows of FF or MRL-E" in note for note in table.notes)


def test_datasets_and_splits_stay_apart(tmp_path):
    rows = [mrl(), mrl(dataset="cifar10", value=50.0), mrl(split="holdout", value=95.0)]
    sections = sections_of(tmp_path, rows)
    assert [(s.dataset, s.split) for s in sections] == [
        ("cifar10", "test"),
        ("fashion_mnist", "holdout"),
        ("fashion_mnist", "test"),
    ]
    assert [s.summary["mean"].item() for s in sections] == [50.0, 95.0, 90.0]


def test_experiments_of_one_method_are_not_averaged(tmp_path):
    rows = [mrl(), mrl(seed=1), row(run="big/seed5", experiment="big", seed=5, value=99.0), ff()]
    lines = lines_of(sections_of(tmp_path, rows)[0])
    assert lines.loc["MRL (big)", "mean"] == 99.0
    assert lines.loc["MRL (mrl)", "num_seeds"] == 2
    assert "FF" in lines.index


def test_runs_of_one_experiment_and_seed_are_not_averaged(tmp_path):
    rows = [row(run="lr1", value=90.0), row(run="lr2", value=80.0)]
    lines = lines_of(sections_of(tmp_path, rows)[0])
    assert lines["mean"].to_dict() == {"MRL (lr1)": 90.0, "MRL (lr2)": 80.0}


def test_one_experiment_per_width_is_one_series(tmp_path):
    rows = [row(method="FF", experiment=f"ff{m}", run=f"ff{m}", granularity=m) for m in (2, 4, 8)]
    lines = lines_of(sections_of(tmp_path, rows)[0])
    assert lines.index.tolist() == ["FF"] * 3


def test_two_ff_baselines_give_no_difference(tmp_path):
    rows = [ff(), row(method="FF", experiment="ff_long", run="ff_long"), mrl()]
    (table,) = comparison_tables(sections_of(tmp_path, rows)[0])
    assert table.header == ["Width", "FF (ff)", "FF (ff_long)", "MRL"]
    assert any("2 different FF baselines" in note for note in table.notes)


def test_interpolated_widths_are_marked_and_yield_to_trained_ones(tmp_path):
    at = {"evaluator": "interpolation"}
    rows = [mrl(), mrl(**at, value=1.0), mrl(**at, granularity=6), ff(), ff(granularity=12)]
    rows += [mrl(**at, granularity=12)]
    (table,) = comparison_tables(sections_of(tmp_path, rows)[0])
    cells = [[str(cell) for cell in line] for line in table.lines]
    assert cells == [
        ["\u2020 6", "\u2013", "90.00", "\u2013"],
        ["8", "90.00", "90.00", "0.00"],
        ["12", "90.00", "\u2020 90.00", "0.00"],
    ]


def test_unlike_numbers_of_images_are_told(tmp_path):
    (table,) = comparison_tables(sections_of(tmp_path, [mrl(), ff(n=500)])[0])
    assert any("500, 10,000" in note for note in table.notes)


def test_markdown_is_one_table_per_metric(tmp_path):
    markdown = markdown_report(split_sections(read_rows([write_study(tmp_path, seeds=2)])))
    lines = markdown.splitlines()
    assert sum(line.startswith("**Fashion-MNIST, test split: ") for line in lines) == 2
    assert sum(line.startswith("|") for line in lines) == 2 * (2 + 13)
    assert "Linear classification, top-1 accuracy (%)" in markdown
    assert "1-NN, top-1 accuracy (%)" in markdown


def test_points_have_a_sign_but_no_minus_zero():
    assert [points(d) for d in (6.666, -0.2, -0.001)] == ["+6.67", "\u22120.20", "0.00"]


def test_names_are_no_markup_in_markdown(tmp_path):
    name = "<b>a</b> | b & c\nd"
    write_rows(tmp_path / "rows.jsonl", [row(method=name)])
    text = markdown_report(split_sections(read_rows([tmp_path])))
    assert "&lt;b>a&lt;/b> \\| b &amp; c d" in text
    assert "<b>" not in text

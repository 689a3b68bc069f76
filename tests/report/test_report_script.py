"""scripts/report.py from end to end, on made-up rows."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_up_rows import row, write_rows, write_study

from mrl.report.readme import replace_between

SCRIPT = Path(__file__).parents[2] / "scripts/report.py"


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)


def test_end_to_end(tmp_path):
    study, out = write_study(tmp_path / "runs", seeds=2), tmp_path / "out"
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results:main -->old<!-- /results:main -->\nafter\n")
    done = report(study, "--out", out, "--title", "A <b>", "--readme", readme, "--name", "main")
    assert done.returncode == 0, done.stderr
    assert "MRL-E" in done.stdout
    assert f"wrote {out / 'report.html'}" in done.stdout
    assert sorted(file.name for file in out.iterdir()) == [
        "accuracy.png",
        "accuracy.svg",
        "difference.png",
        "difference.svg",
        "report.html",
        "rows.csv",
        "table.csv",
        "table.md",
    ]
    assert "<title>A &lt;b&gt;</title>" in (out / "report.html").read_text(encoding="utf-8")
    text = readme.read_text(encoding="utf-8")
    assert (out / "table.md").read_text(encoding="utf-8").strip() in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    summary = pd.read_csv(out / "table.csv")
    line = summary.query("series == 'MRL' and evaluator == 'classify' and granularity == 2")
    assert line["mean"].item() == pytest.approx(89.65)
    assert line["difference"].item() == pytest.approx(6.6)
    assert len(pd.read_csv(out / "rows.csv")) == 2 * (14 + (14 + 6) + (14 + 12))


def test_one_figure_per_data_set(tmp_path):
    for dataset in ("cifar10", "fashion_mnist"):
        write_study(tmp_path / dataset, seeds=1, methods=["MRL"], dataset=dataset)
    done = report(tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    names = {file.name for file in (tmp_path / "out").glob("*.png")}
    assert names == {"accuracy_cifar10_test.png", "accuracy_fashion_mnist_test.png"}


def test_errors_are_one_line(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [row()])
    file.write_text(file.read_text() + "{")
    done = report(file, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {file}, line 2: not JSON")
    assert "Traceback" not in done.stderr


def test_markers_must_be_there():
    text = "a <!-- results:x --> b <!-- /results:x --> c"
    assert replace_between(text, "x", "N\n") == (
        "a <!-- results:x -->\n\nN\n\n<!-- /results:x --> c"
    )
    with pytest.raises(ValueError, match=r"results:y --> exactly once, found 0"):
        replace_between(text, "y", "N")
    with pytest.raises(ValueError, match="exactly once, found 2"):
        replace_between(text * 2, "x", "N")
    with pytest.raises(ValueError, match="stands before"):
        replace_between("<!-- /results:x --><!-- results:x -->", "x", "N")

"""The quickstart's own path, on tiny synthetic images."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# FF-64 needs a 64-d embedding, so only images and depth are tiny.
TINY = ["data=synthetic", "data.num_images=96", "data.holdout=32", "data.image_size=8"]
TINY += ["backbone.widths=[8,64]", "backbone.blocks=[1,1]", "optim.epochs=1", "optim.batch_size=32"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart_makes_the_report_and_reuses_what_is_there(tmp_path):
    if not (ROOT / ".venv").is_dir():
        pytest.skip("no .venv: run through bash scripts/test.sh, or the script would install one")
    out = tmp_path / "quickstart"
    command = ["bash", "scripts/quickstart.sh", *TINY]
    env = {**os.environ, "OUT": str(out), "OMP_NUM_THREADS": "1"}
    first = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    made = {path.name for path in out.iterdir()}
    assert {"report.html", "table.md", "table.csv", "rows.csv", "accuracy.png"} <= made
    rows = [json.loads(x) for p in out.glob("*/rows.jsonl") for x in p.read_text().splitlines()]
    assert {row["method"] for row in rows} == {"MRL", "MRL-E", "FF"}
    assert {row["evaluator"] for row in rows} == {"classify", "knn", "interpolation"}
    assert {r["granularity"] for r in rows if r["method"] == "FF"} == {2, 4, 16, 64}
    assert "width | " in (out / "table.md").read_text().lower()

    before = {path: path.read_bytes() for path in out.glob("*/*.*")}
    second = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr[-2000:]
    assert second.stdout.count("finished already") == 6
    assert second.stdout.count("done before") == 6
    assert {path: path.read_bytes() for path in before} == before

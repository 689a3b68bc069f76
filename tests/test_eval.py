"""eval.py: a tiny run from training to rows, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from mrl import config
from mrl.distributed import Ranks
from mrl.evaluation import EVALUATORS, as_table, evaluate_run
from mrl.evaluation.rows import Row, append_rows
from mrl.report.rows import read_rows
from mrl.train_loop import fit

ROOT = Path(__file__).parent.parent
TinyRun = Callable[..., config.TrainConfig]


def compose_eval(*overrides: str) -> config.EvalConfig:
    config.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return config.parse(compose("eval", overrides=list(overrides)))


def train(cfg: config.TrainConfig) -> Path:
    fit(cfg, Ranks(), torch.device("cpu"))
    return Path(cfg.run_dir)


def test_every_evaluator_has_a_section_and_a_file() -> None:
    files = {path.stem for path in (ROOT / "configs/evals").iterdir()}
    assert set(EVALUATORS) == files == set(config.EvalsConfig.__slots__)


@pytest.mark.parametrize(("kind", "method"), [("nested", "MRL"), ("tied", "MRL-E")])
def test_from_training_to_rows(tiny_run: TinyRun, kind: str, method: str) -> None:
    run_dir = train(tiny_run(f"head={kind}", "seed=3", "name=tiny"))
    rows = evaluate_run(run_dir, compose_eval(f"run={run_dir}", "device=cpu"))
    found = {(r.evaluator, r.metric, r.granularity) for r in rows}
    expected = {("classify", "top1", m) for m in (2, 4, 16)}
    expected |= {("knn", f"top1_k{k}", m) for k in (1, 5) for m in (2, 4, 16)}
    expected |= {("interpolation", "top1_k1", m) for m in (3, 8)}
    if kind == "tied":
        expected |= {("interpolation", "top1", m) for m in (3, 8)}
    assert found == expected
    first = rows[0]
    assert first.run == "/".join(run_dir.parts[-2:])
    assert (first.experiment, first.method, first.seed) == ("tiny", method, 3)
    assert (first.dataset, first.split) == ("synthetic", "test")
    assert first.commit == json.loads((run_dir / "env.json").read_text())["commit"]
    assert all(0 <= row.value <= 100 and row.n == first.n for row in rows)
    written = [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()]
    assert [Row(**values) for values in written] == rows
    assert len(read_rows([run_dir])) == len(rows)


def test_repeat_reuses_features_and_adds_rows(tiny_run: TinyRun) -> None:
    run_dir = train(tiny_run())
    cfg = compose_eval(f"run={run_dir}", "evals=[classify]", "split=holdout")
    first = evaluate_run(run_dir, cfg)
    entries = [(e, e.stat().st_mtime_ns) for e in (run_dir / "features").iterdir()]
    assert len(entries) == 1  # classify needs no bank
    assert evaluate_run(run_dir, cfg) == first
    assert [(e, e.stat().st_mtime_ns) for e in (run_dir / "features").iterdir()] == entries
    assert {row.n for row in first} == {16}
    assert len((run_dir / "rows.jsonl").read_text().splitlines()) == 2 * len(first)


def test_command_line(tiny_run: TinyRun, tmp_path: Path) -> None:
    runs = [train(tiny_run(f"run_dir={tmp_path}/{name}")) for name in ("a", "b")]

    def evaluate(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "eval.py"), *overrides]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = evaluate(f"run=[{runs[0]},{runs[1]}]", "evals=[classify]")
    assert done.returncode == 0, done.stderr
    for run in runs:
        assert f"rows: {run}/rows.jsonl" in done.stdout
        assert (run / "rows.jsonl").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]  # Hydra leaves nothing behind

    refused = evaluate(f"run={runs[0]}", "+evals.knn.kk=3")
    assert refused.returncode != 0
    assert "kk" in refused.stderr


def test_refused_before_any_work(tmp_path: Path) -> None:
    for override in ("+unknown=1", "+evals.classify.x=1"):
        with pytest.raises(config.ConfigError, match=r"unknown|'x'"):
            compose_eval("run=a", override)
    with pytest.raises(config.ConfigError, match="no value for run"):
        compose_eval()
    with pytest.raises(config.ConfigError, match="run must be a run directory"):
        config.run_dirs(compose_eval("run=3"))
    with pytest.raises(config.ConfigError, match="batch_size must be at least 1"):
        config.run_dirs(compose_eval("run=a", "batch_size=0"))
    assert config.run_dirs(compose_eval("run=[a,b]")) == ["a", "b"]
    with pytest.raises(RuntimeError, match="no checkpoint"):
        evaluate_run(tmp_path, compose_eval(f"run={tmp_path}"))


def test_settings_that_do_not_fit_the_run_write_no_rows(tiny_run: TinyRun) -> None:
    run_dir = train(tiny_run("data.holdout=0"))
    for overrides, message in [
        (["evals=[]"], "no evaluator asked for"),
        (["split=holdout"], "holdout"),
        (["evals.knn.k=[1000]"], "1000"),
        (["evals.interpolation.widths=[1]"], "outside 2..16"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_run(run_dir, compose_eval(f"run={run_dir}", *overrides))
    assert not (run_dir / "rows.jsonl").exists()


def make_row(metric: str, m: int, value: float) -> Row:
    return Row(
        run="a/b", experiment="a", method="MRL", seed=0, commit="c", dataset="d", split="test",
        evaluator="knn", metric=metric, granularity=m, value=value, n=9,
    )  # fmt: skip


def test_rows_are_added_after_a_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"cut": 1}')
    append_rows(path, [make_row("top1_k1", 8, 50.0)])
    lines = path.read_text().splitlines()
    assert lines[0] == '{"cut": 1}'
    assert Row(**json.loads(lines[1])) == make_row("top1_k1", 8, 50.0)


def test_table() -> None:
    rows = [make_row("top1_k1", 8, 50), make_row("top1_k5", 2, 1 / 3), make_row("top1_k1", 2, 7)]
    header, body = as_table(rows)
    assert header == ["granularity", "knn top1_k1", "knn top1_k5"]
    assert body == [["2", "7.00", "0.33"], ["8", "50.00", ""]]

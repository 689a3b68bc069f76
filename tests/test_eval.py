"""eval.py: a tiny run from training to rows, and what it refuses."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from mrl import config
from mrl.config_rules import run_dirs
from mrl.distributed import Ranks
from mrl.evaluation import EVALUATORS, as_table, evaluate_run, search_table, subject
from mrl.evaluation.rows import Row, append_rows
from mrl.export import read_source
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
    assert set(EVALUATORS) == files - {"default"}
    assert set(EVALUATORS) == {*config.EvalsConfig.__slots__} - {"by_default"}


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
    with pytest.raises(config.ConfigError, match="give one of run=DIRECTORY and ckpt=FILE"):
        run_dirs(compose_eval())
    with pytest.raises(config.ConfigError, match="give one of run=DIRECTORY and ckpt=FILE"):
        run_dirs(compose_eval("run=a", "ckpt=b", "out=c"))
    for overrides in (["run=a", "out=b"], ["ckpt=a"]):
        with pytest.raises(config.ConfigError, match="is needed with it"):
            run_dirs(compose_eval(*overrides))
    with pytest.raises(config.ConfigError, match="data_root is for the run's own"):
        run_dirs(compose_eval("run=a", "data=synthetic", "data_root=b"))
    with pytest.raises(config.ConfigError, match="split=holdout is of the data set"):
        run_dirs(compose_eval("run=a", "queries=imagenet_a", "split=holdout"))
    for override, section in (("data.root=x", "data"), ("queries.root=x", "queries")):
        with pytest.raises(config.ConfigError, match=f"{section} has keys but no name"):
            compose_eval("run=a", override)
    for overrides, message in [
        (["run=a", "labels=b"], "labels is for embeddings=FILE, got labels=b"),
        (["embeddings=a"], "is needed with it"),
        (["embeddings=a", "out=b", "run=c"], "give one of run=DIRECTORY"),
        (["embeddings=a", "out=b", "data=synthetic"], "data does not go with embeddings"),
        (["embeddings=a", "out=b", "split=holdout"], "split does not go with embeddings"),
        (["embeddings=a", "out=b", "query_labels=c"], "query_embeddings=FILE, which is missing"),
        (["embeddings=a", "out=b", "num_queries=0"], "num_queries must be at least 1"),
        (
            ["embeddings=a", "out=b", "query_embeddings=c", "num_queries=3"],
            "num_queries draws from the bank",
        ),
    ]:
        with pytest.raises(config.ConfigError, match=message):
            run_dirs(compose_eval(*overrides))
    assert run_dirs(compose_eval("embeddings=a", "out=b", "widths=[8]")) == []
    with pytest.raises(config.ConfigError, match="run must be a run directory"):
        run_dirs(compose_eval("run=3"))
    with pytest.raises(config.ConfigError, match="batch_size must be at least 1"):
        run_dirs(compose_eval("run=a", "batch_size=0"))
    assert run_dirs(compose_eval("run=[a,b]")) == ["a", "b"]
    with pytest.raises(RuntimeError, match="no checkpoint"):
        evaluate_run(tmp_path, compose_eval(f"run={tmp_path}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evals.interpolation.widths=every", "must be a list of widths, all or null, got 'every'"),
        ("evals.interpolation.widths=[8,1.5]", r"must be a list of widths.*got \[8, 1.5\]"),
        ("evals.retrieval.ks=[10,10]", r"ks must be different positive numbers, got \[10, 10\]"),
        ("evals.retrieval.shortlist=99", r"shortlist=99 is shorter than the longest of ks"),
        ("evals.retrieval.timed_queries=-1", "timed_queries must be at least 0"),
        ("evals.retrieval.funnels=[{dims:[8,4],shortlists:[9]}]", "increase, got"),
        ("evals.retrieval.funnels=[{dims:[4,8],shortlists:[]}]", "need 1 shortlists"),
        ("evals.retrieval.funnels=[{dims:[4,8,16],shortlists:[20,30]}]", "never grow"),
        ("evals.retrieval.funnels=[{dims:[4,8],shortlists:[9]}]", "shorter than the least of ks"),
        ("evals.truncation.k=0", "evals.truncation.k must be at least 1"),
    ],
)
def test_sections_that_cannot_be(override: str, message: str) -> None:
    evals = "evals=[interpolation,retrieval,truncation]"
    run_dirs(compose_eval("run=a", evals, "evals.interpolation.widths=all"))
    with pytest.raises(config.ConfigError, match=message):
        run_dirs(compose_eval("run=a", evals, override))


def test_retrieval_and_every_width_of_a_run(tiny_run: TinyRun) -> None:
    run_dir = train(tiny_run("name=tiny"))
    overrides = ["evals=[interpolation,retrieval,truncation]", "evals.interpolation.widths=all"]
    overrides += ["evals.retrieval.ks=[5]", "evals.retrieval.shortlist=20", "device=cpu"]
    rows = evaluate_run(run_dir, compose_eval(f"run={run_dir}", *overrides))
    assert {r.granularity for r in rows if r.evaluator == "interpolation"} == {*range(1, 17)}
    grid = {(r.granularity, r.metric) for r in rows if r.metric.startswith("mAP@5 rerank")}
    assert grid == {(a, f"mAP@5 rerank={b} K=20") for a, b in ((2, 4), (2, 16), (4, 16))}
    assert len(read_rows([run_dir])) == len(rows)
    header, body = search_table(rows)
    assert header == ["widths", "shortlists", "top1", "mAP@5", "MFLOPs/query", "ms/query"]
    assert sorted(line[0] for line in body) == ["16", "2", "2 > 16", "2 > 4", "4", "4 > 16"]
    costs = [float(line[4]) for line in body]
    assert costs == sorted(costs)
    assert not any("retrieval" in name for name in as_table(rows)[0])
    cut = compose_eval(f"run={run_dir}", "evals=[retrieval]")
    with pytest.raises(ValueError, match=r"evals\.retrieval\.ks=100 is more than the 32"):
        evaluate_run(run_dir, cut)


@pytest.mark.parametrize("head", ["nested", "tied"])
def test_embeddings_in_float16_give_rows_that_say_so(tiny_run: TinyRun, head: str) -> None:
    run_dir = train(tiny_run(f"head={head}", "data.num_images=256", "optim.epochs=4"))
    evals = "evals=[classify,knn,interpolation,retrieval,truncation]"
    small = ["evals.retrieval.shortlist=20", "evals.retrieval.ks=[5,10]"]
    both = [
        evaluate_run(run_dir, compose_eval(f"run={run_dir}", evals, *small, f"feature_type={kind}"))
        for kind in ("float32", "float16")
    ]
    names = {"nested": "MRL", "tied": "MRL-E"}
    assert [{row.method for row in rows} for rows in both] == [
        {names[head]},
        {f"{names[head]}, float16"},
    ]
    assert len(read_rows([run_dir])) == len(both[0]) + len(both[1])
    for row, rounded in zip(*both, strict=True):
        assert (row.metric, row.granularity, row.n) == (
            rounded.metric, rounded.granularity, rounded.n
        )  # fmt: skip
        if row.metric == "bytes/item":
            assert rounded.value == row.value / 2
        elif row.metric.startswith("MFLOPs/query"):
            assert rounded.value == row.value
        elif not row.metric.startswith("ms/query"):
            assert rounded.value == pytest.approx(row.value, abs=5)


def test_settings_that_do_not_fit_the_run_cost_the_rows_of_their_evaluator_only(
    tiny_run: TinyRun,
) -> None:
    run_dir = train(tiny_run("data.holdout=0"))
    for overrides, message, kept in [
        (["evals=[]"], "no evaluator asked for", set()),
        (["split=holdout"], "holdout", set()),
        (["evals.knn.k=[1000]"], "1000", {"classify"}),
        (["evals.interpolation.widths=[1]"], "outside 2..16", {"classify", "knn"}),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_run(run_dir, compose_eval(f"run={run_dir}", *overrides))
        written = run_dir / "rows.jsonl"
        assert ({*read_rows([written]).evaluator} if written.exists() else set()) == kept


@pytest.mark.parametrize("script", ["train", "eval"])
def test_too_little_memory_on_a_gpu_is_said_with_what_helps(
    script: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    command = {
        "train": ["experiment=fashion_mnist_mrl", f"run_dir={tmp_path}"],
        "eval": [f"run={tmp_path}"],
    }
    monkeypatch.setattr("mrl.train_loop.fit", fails)
    monkeypatch.setattr("mrl.evaluation.evaluate_run", fails)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *command[script]])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    helps = {"train": "optim.accumulate=2", "eval": "device=cpu"}
    assert "Tried to allocate 9 GiB" in str(stopped.value)
    assert helps[script] in str(stopped.value)


def pictures(root: Path, counts: dict[str, int]) -> Path:
    """ROOT/CLASS/*.png, each class in a colour of its own."""
    for i, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for j in range(count):
            shade = np.full((20, 24, 3), 20 * i + j, np.uint8)
            Image.fromarray(shade).save(root / name / f"{j}.png")
    return root


def test_a_checkpoint_is_judged_on_other_images(tiny_run: TinyRun, tmp_path: Path) -> None:
    """Class folders by number are the ten classes; the bank is the run's own training part."""
    run_dir = train(tiny_run("name=tiny", "seed=3"))
    by_number = pictures(tmp_path / "v2", {str(c): 1 + c % 2 for c in range(10)})
    out = tmp_path / "elsewhere" / "rows"
    overrides = ["queries.name=v2", f"queries.root={by_number}", "device=cpu"]
    ckpt = run_dir / "checkpoint.pt"
    rows = evaluate_run(ckpt, compose_eval(f"ckpt={ckpt}", f"out={out}", *overrides))
    assert {(r.run, r.experiment, r.seed, r.dataset, r.split, r.n) for r in rows} == {
        ("elsewhere/rows", "tiny", 3, "v2", "test", 15)
    }
    assert {r.evaluator for r in rows} == {"classify", "knn", "interpolation"}
    assert len(read_rows([out])) == len(rows)
    assert sorted(p.name for p in run_dir.iterdir() if p.name in ("features", "rows.jsonl")) == []
    again = evaluate_run(run_dir, compose_eval(f"run={run_dir}", *overrides))
    assert [r.value for r in again] == [r.value for r in rows]


def test_the_head_of_a_checkpoint_needs_its_classes(tiny_run: TinyRun, tmp_path: Path) -> None:
    run_dir = train(tiny_run())
    other = pictures(tmp_path / "q", {"cat": 2, "dog": 3})
    mapped = tmp_path / "map.json"
    mapped.write_text(json.dumps({"cat": ["class 3", "class 4"], "dog": "class 0"}))
    base = [f"run={run_dir}", "queries.name=q", f"queries.root={other}", "evals=[classify]"]
    with pytest.raises(ValueError, match=r"2 of 2 class folders are none of the 10 classes"):
        evaluate_run(run_dir, compose_eval(*base))
    rows = evaluate_run(run_dir, compose_eval(*base, f"queries.classes_map={mapped}"))
    assert {row.n for row in rows} == {5}
    data = ["data=synthetic", "data.num_classes=12", "data.num_images=80"]
    with pytest.raises(ValueError, match=r"2 of 12 class folders .*'evals=\[knn\]' does without"):
        evaluate_run(run_dir, compose_eval(f"run={run_dir}", *data))
    # The training part of those data, and not of the run's, is then the bank.
    rows = evaluate_run(run_dir, compose_eval(f"run={run_dir}", *data, "evals=[knn]"))
    assert {row.n for row in rows} == {20}


def test_weights_alone_need_a_data_set(tiny_run: TinyRun, tmp_path: Path, monkeypatch) -> None:
    """As a file of the authors' comes: no config, no class list."""
    run_dir = train(tiny_run())
    source = replace(read_source(run_dir), classes=None)
    file = tmp_path / "r50_mrl1.pt"
    torch.save({"fc.weight": torch.zeros(2)}, file)  # no checkpoint of this project
    monkeypatch.setattr(subject, "read_source", lambda path: source)
    base = [f"ckpt={file}", f"out={tmp_path}/out", "device=cpu"]
    with pytest.raises(ValueError, match="does not say what data it was trained on"):
        evaluate_run(file, compose_eval(*base))
    data = ["data=synthetic", "data.num_images=48", "data.holdout=16"]
    rows = evaluate_run(file, compose_eval(*base, *data))
    assert (rows[0].experiment, rows[0].commit, rows[0].run.split("/")[1]) == (
        "r50_mrl1",
        "unknown",
        "out",
    )
    own = evaluate_run(run_dir, compose_eval(f"run={run_dir}", "device=cpu"))
    assert [row.value for row in rows] == [row.value for row in own]
    with pytest.raises(ValueError, match="does not name its 10 classes, and the data set has 4"):
        evaluate_run(file, compose_eval(*base, "data=synthetic", "data.num_classes=4"))


def test_imagenets_classes_are_known() -> None:
    names = subject.imagenet_1k()
    assert len(names) == 1000 and names == sorted(names)
    assert names[0] == "n01440764" and names[-1] == "n15075141"


def test_two_ranks_count_every_image_once(tiny_run: TinyRun, tmp_path: Path) -> None:
    """13 images to judge and 33 of the bank, in batches of 4: neither number can be shared."""
    shape = ["data.num_classes=13", "data.num_images=49", "data.holdout=16"]
    run_dir = train(tiny_run(*shape))
    command = [f"ckpt={run_dir}", "batch_size=4", "device=cpu"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = {}
    for out, launcher in (("one", []), ("two", launch)):
        done[out] = subprocess.run(
            [sys.executable, *launcher, str(ROOT / "eval.py"), *command, f"out={tmp_path}/{out}"],
            capture_output=True, text=True, cwd=tmp_path, env=env, check=False,
        )  # fmt: skip
        assert done[out].returncode == 0, done[out].stderr
    lines = ((tmp_path / name / "rows.jsonl").read_text().splitlines() for name in done)
    one, two = ([Row(**json.loads(line)) for line in of_run] for of_run in lines)
    assert [(r.metric, r.granularity, r.value, r.n) for r in one] == [
        (r.metric, r.granularity, r.value, r.n) for r in two
    ]
    assert {row.n for row in two} == {13}
    assert done["two"].stdout == done["one"].stdout.replace("/one", "/two")  # rank 0 alone speaks
    features = {
        name: {
            entry.name: (np.load(entry / "embeddings.npy"), np.load(entry / "labels.npy"))
            for entry in (tmp_path / name / "features").iterdir()
        }
        for name in ("one", "two")
    }
    assert features["one"].keys() == features["two"].keys()
    for name, (z, labels) in features["one"].items():
        np.testing.assert_array_equal(labels, features["two"][name][1])
        np.testing.assert_array_equal(z, features["two"][name][0])
    assert sorted(len(z) for z, _ in features["two"].values()) == [13, 33]


def test_a_table_of_very_many_widths_shows_the_trained_ones() -> None:
    rows = [make_row("top1_k1", m, 50) for m in (8, 16)]
    rows += [replace(make_row("top1_k1", m, 50), evaluator="interpolation") for m in range(1, 99)]
    assert [line[0] for line in as_table(rows)[1]] == ["8", "16"]


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

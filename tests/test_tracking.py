import json
import os
import platform
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from interrupts import stop_at

from mrl.distributed import Ranks
from mrl.precision import _cpu_multiplies_bf16, pick_precision
from mrl.tracking import RunWriter, device_name, git_commit, per_granularity
from mrl.train_loop import fit

ROOT = Path(__file__).parent.parent


def test_names_sort_by_width():
    names = list(per_granularity("val/top1", {8: 1.0, 16: 2.0, 2048: 3.0}))
    assert names == ["val/top1/d0008", "val/top1/d0016", "val/top1/d2048"] == sorted(names)


def test_wandb_offline_needs_no_account(tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    options = ["data=synthetic", "backbone.widths=[8]", "backbone.blocks=[1]"]
    options += ["head.granularities=[2,8]", "optim.epochs=1", "optim.warmup_epochs=0"]
    options += ["tracking=wandb", "tracking.mode=offline", f"run_dir={tmp_path}/run"]
    done = subprocess.run(
        [sys.executable, "train.py", *options],
        cwd=ROOT,
        env={**env, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
    assert b"holdout/top1/d0008" in log.read_bytes()
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def record_of(run_dir):
    """The whole lines of metrics.jsonl, also while it is written."""
    lines = Path(run_dir, "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def killed_at(step, cfg, monkeypatch):
    """A run that dies just after it logged ``step``, with nothing saved since its last epoch."""
    log = RunWriter.log

    def dying(self, at, metrics):
        log(self, at, metrics)
        if at == step:
            raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "log", dying)
        with pytest.raises(SystemExit, match="killed"):
            fit(cfg, Ranks(), torch.device("cpu"))


def test_wandb_goes_on_with_the_same_run(tiny_run, monkeypatch):
    """A requeued run has one id; offline each start writes a directory of its own."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ["tracking=wandb", "tracking.mode=offline"]
    cfg = tiny_run(*options)
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            fit(cfg, Ranks(), torch.device("cpu"))
    fit(tiny_run(*options, "resume=true"), Ranks(), torch.device("cpu"))
    ids = {p.name.split("-")[-1] for p in Path(cfg.run_dir, "wandb").glob("offline-run-*")}
    assert ids == {Path(cfg.run_dir, "wandb_id").read_text()}


def records_of(log):
    """What a .wandb file holds: LevelDB's log, in blocks of 32 KiB, after a head of 7 bytes."""
    content, place, parts = log.read_bytes(), 7, []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no room for a record's head: filled up with zeros
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


def history_of(log):
    """Of one start of a W&B run: what its metrics are drawn against, and the rows logged."""
    from wandb.proto.wandb_internal_pb2 import Record

    axes, rows = set(), []
    for record in map(Record.FromString, records_of(log)):
        if record.HasField("metric"):
            axes.add((record.metric.glob_name, record.metric.step_metric))
        if record.HasField("history"):
            items = record.history.item
            rows.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return axes, rows


def test_wandb_is_not_given_a_step_that_it_has_passed(tiny_run, monkeypatch):
    """It would drop it. Killed at step 5, the run goes on from step 4: both starts count alike."""
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = ["tracking=wandb", "tracking.mode=offline", "tracking.log_every=1"]
    cfg = tiny_run(*options)
    killed_at(5, cfg, monkeypatch)
    fit(tiny_run(*options, "resume=true"), Ranks(), torch.device("cpu"))
    logs = Path(cfg.run_dir).glob("wandb/offline-run-*/*.wandb")
    starts = [history_of(log) for log in sorted(logs, key=lambda log: log.stat().st_mtime)]
    for axes, rows in starts:
        assert ("*", "step") in axes
        assert [row["_step"] for row in rows] == list(range(len(rows)))  # only counts
    steps = [[row["step"] for row in rows if "lr" in row] for _, rows in starts]
    assert steps == [[1, 2, 3, 4, 5], [5, 6, 7, 8]]
    recorded = [line for line in record_of(cfg.run_dir) if "lr" in line]
    shown = [row for _, rows in starts for row in rows if "lr" in row]
    assert [row["train/total"] for row in shown[:4] + shown[5:]] == [
        line["train/total"] for line in recorded
    ]


def test_a_dashboard_that_fails_does_not_stop_training(tiny_run, monkeypatch, capsys):
    from torch.utils import tensorboard

    def broken(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", broken)
    cfg = tiny_run("tracking=tensorboard")
    fit(cfg, Ranks(), torch.device("cpu"))
    assert Path(cfg.run_dir, "finished").exists()
    assert capsys.readouterr().out.count("no route to host") == 1


def test_tensorboard_mirrors_the_record(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = tiny_run("tracking=tensorboard", "tracking.log_every=2")
    fit(cfg, Ranks(), torch.device("cpu"))
    events = EventAccumulator(f"{cfg.run_dir}/tensorboard")
    events.Reload()
    expected = [(x["step"], x["train/total"]) for x in record_of(cfg.run_dir) if "train/total" in x]
    shown = [(e.step, e.value) for e in events.Scalars("train/total")]
    assert shown == [(step, pytest.approx(value)) for step, value in expected]
    assert "holdout/top1/d0016" in events.Tags()["scalars"]


@pytest.mark.parametrize("step", [1, 5, 7], ids=lambda step: f"killed at {step}")
def test_tensorboard_shows_each_step_once_after_a_kill(tiny_run, monkeypatch, step):
    """Steps after the last checkpoint are done again; the first time's must not stand beside."""
    options = ["tracking=tensorboard", "tracking.log_every=1"]
    cfg = tiny_run(*options)
    killed_at(step, cfg, monkeypatch)
    fit(tiny_run(*options, "resume=true"), Ranks(), torch.device("cpu"))
    assert len(list(Path(cfg.run_dir, "tensorboard").iterdir())) == 2
    assert_shown_as_recorded(cfg.run_dir, 8)


def assert_shown_as_recorded(run_dir, num_steps):
    """TensorBoard's own reader shows the record's steps and losses, each once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(f"{run_dir}/tensorboard", size_guidance={"scalars": 0})
    events.Reload()
    lines = record_of(run_dir)
    for tag in events.Tags()["scalars"]:
        expected = sorted({line["step"] for line in lines if tag in line})
        assert [event.step for event in events.Scalars(tag)] == expected, tag
    expected = [line["train/total"] for line in lines if "train/total" in line]
    assert [event.value for event in events.Scalars("train/total")] == pytest.approx(expected)
    assert len(expected) == num_steps


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_sigkill(tmp_path):
    command = [sys.executable, "train.py", "data=synthetic", "data.num_images=80"]
    command += ["data.holdout=16", "backbone.widths=[8,16]", "backbone.blocks=[1,1]"]
    command += ["head.granularities=[2,16]", "optim.batch_size=8", "optim.epochs=40"]
    command += ["tracking=tensorboard", "tracking.log_every=1", "save.every=5", "resume=true"]
    command += [f"run_dir={tmp_path}"]
    for step in (53, 153):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not (tmp_path / "metrics.jsonl").exists() or len(record_of(tmp_path)) < step:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert_shown_as_recorded(tmp_path, 320)


def test_the_commit_is_known_in_a_checkout_and_nowhere_else(tmp_path):
    assert git_commit(tmp_path) == "unknown"
    if (ROOT / ".git").exists():
        assert len(git_commit().removesuffix("-dirty")) == 40


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux lists its processors there")
def test_the_processor_is_named():
    listed = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(": ", 1)[1] for line in listed if line.startswith("model name")]
    assert device_name(torch.device("cpu")) in (names or [platform.machine()])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512f", False),
        ("flags\t\t: fpu avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("vendor_id: bf16", False),
    ],
)
def test_bf16_only_where_the_cpu_computes_in_it(tmp_path, line, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\n{line}\n")
    assert _cpu_multiplies_bf16(cpuinfo) == expected
    assert not _cpu_multiplies_bf16(tmp_path / "absent")


def test_a_precision_that_is_named_is_taken():
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"
    assert pick_precision("fp32", torch.device("cpu")) == "fp32"

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interrupts import stop_at

from mrl.distributed import Ranks
from mrl.precision import _cpu_multiplies_bf16, pick_precision
from mrl.tracking import device_name, git_commit, per_granularity
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
    recorded = [json.loads(x) for x in Path(cfg.run_dir, "metrics.jsonl").read_text().splitlines()]
    expected = [(x["step"], x["train/total"]) for x in recorded if "train/total" in x]
    shown = [(e.step, e.value) for e in events.Scalars("train/total")]
    assert shown == [(step, pytest.approx(value)) for step, value in expected]
    assert "holdout/top1/d0016" in events.Tags()["scalars"]


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

"""The training loop: records, resumption, refusals. CPU, synthetic images, seconds each."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from interrupts import stop_at

from mrl import train_loop
from mrl.checkpoint import CheckpointError, load_checkpoint, load_model
from mrl.config import ConfigError
from mrl.distributed import Ranks
from mrl.files import alone
from mrl.train_loop import NonFiniteError, fit
from mrl.train_state import TrainState

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def train(cfg):
    return fit(cfg, Ranks(), CPU)


def metrics_of(cfg):
    return [
        json.loads(line) for line in Path(cfg.run_dir, "metrics.jsonl").read_text().splitlines()
    ]


def assert_same_state(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y)
    else:
        assert a == b


def without_speed(line):
    return {key: value for key, value in line.items() if not key.startswith("speed/")}


CROP = {"crop_ratio": 0.875, "interpolation": "bilinear"}


def test_a_run_records_everything(tiny_run):
    cfg = tiny_run("tracking.log_every=2")
    checkpoint = train(cfg)
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == [
        ".training.lock",
        "checkpoint.pt",
        "config.yaml",
        "env.json",
        "finished",
        "metrics.jsonl",
    ]
    lines = metrics_of(cfg)
    assert [line["step"] for line in lines] == [2, 4, 4, 6, 8, 8]
    names = {"train/loss/d0002", "train/loss/d0004", "train/loss/d0016", "train/total", "lr"}
    assert names <= lines[0].keys()
    assert {"holdout/top1/d0002", "holdout/top1/d0016"} <= lines[2].keys()
    parts = [lines[0][f"train/loss/d{m:04d}"] for m in (2, 4, 16)]
    assert lines[0]["train/total"] == pytest.approx(sum(parts), rel=1e-5)
    env = json.loads((checkpoint.parent / "env.json").read_text())
    assert {"commit", "torch", "device", "precision", "world_size", "command"} <= env.keys()
    assert env["resolved"] == {
        "parameters": sum(p.numel() for p in load_model(checkpoint).parameters()),
        "embed_dim": 16,
        "granularities": [2, 4, 16],
        "num_classes": 10,
        "total_steps": 8,
        "warmup_steps": round(4 * cfg.optim.warmup_epochs),
        "peak_lr": cfg.optim.base_lr * cfg.optim.batch_size / 256,
        "pixels": {"mean": [0.5] * 3, "std": [0.25] * 3} | CROP,
    }
    assert {"images_per_s", "step_ms", "data_wait", "memory_mib"} == {
        name.removeprefix("speed/") for name in lines[0] if name.startswith("speed/")
    }


def test_training_learns(tiny_run):
    cfg = tiny_run(
        "optim.epochs=12", "data.num_images=256", "optim.batch_size=32", "data.holdout=64"
    )
    train(cfg)
    last = metrics_of(cfg)[-1]
    assert last["holdout/top1/d0016"] > 60  # chance: 10


@pytest.mark.parametrize(
    ("options", "step"),
    [
        (["head=nested"], 2),  # within an epoch
        (["head=tied"], 3),  # at its last step
        (["head=nested"], 4),  # at the next one's first
        (["optim.ema=0.9", "optim.accumulate=2", "optim.clip_norm=1"], 5),
        (["optim.mixup=0.8", "optim.cutmix=1.0", "head.sampled=2"], 5),
        (["optim.precision=fp16", "optim=adamw"], 5),
        (["optim.precision=bf16", "backbone.trainable=[layers.4]"], 5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else f"step {value}",
)
def test_stop_and_resume_equals_a_straight_run_bit_for_bit(
    tiny_run, tmp_path, monkeypatch, options, step
):
    straight = tiny_run(*options, f"run_dir={tmp_path}/straight", "tracking.log_every=1")
    train(straight)
    stopped = tiny_run(*options, "tracking.log_every=1")
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    assert load_checkpoint(stopped.run_dir)["step"] == step + 1
    torch.manual_seed(99)  # nothing may hang on the generator's state at the restart
    train(dataclasses.replace(stopped, resume=True))

    a, b = load_checkpoint(straight.run_dir), load_checkpoint(stopped.run_dir)
    assert a.keys() == b.keys()
    for key in a.keys() - {"config"}:
        assert_same_state(a[key], b[key])
    for x, y in zip(metrics_of(straight), metrics_of(stopped), strict=True):
        assert without_speed(x) == without_speed(y)


def test_resuming_a_model_with_dropped_paths_equals_a_straight_run(
    compose_train, tmp_path, monkeypatch
):
    """Stochastic depth draws from the global generator, whose state the checkpoint must hold."""
    options = ["data=synthetic", "data.image_size=32", "data.num_images=40", "data.holdout=8"]
    options += ["backbone=timm", "backbone.name=convnext_atto", "backbone.drop_path=0.5"]
    options += ["optim=adamw", "optim.epochs=1", "optim.batch_size=8", "optim.warmup_epochs=0"]
    options += ["optim.precision=fp32"]
    straight = compose_train(*options, f"run_dir={tmp_path}/straight")
    stopped = compose_train(*options, f"run_dir={tmp_path}/stopped")
    train(straight)
    with monkeypatch.context() as patch:
        stop_at(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    train(dataclasses.replace(stopped, resume=True))
    assert_same_state(
        load_checkpoint(straight.run_dir)["model"], load_checkpoint(stopped.run_dir)["model"]
    )


def test_a_finished_run_is_left_as_it_is(tiny_run, capsys):
    cfg = tiny_run()
    checkpoint = train(cfg)
    before = checkpoint.read_bytes()
    train(dataclasses.replace(cfg, resume=True))
    assert checkpoint.read_bytes() == before
    assert "finished already" in capsys.readouterr().out


def test_another_runs_directory_is_refused(tiny_run):
    cfg = tiny_run()
    checkpoint = train(cfg)
    before = checkpoint.read_bytes()
    with pytest.raises(ConfigError, match="holds a run already: resume=true"):
        train(cfg)
    with pytest.raises(ConfigError, match="another config: optim.base_lr: 0.4 -> 0.1"):
        train(tiny_run("optim.base_lr=0.1", "resume=true"))
    assert checkpoint.read_bytes() == before


def test_what_a_killed_process_was_writing_is_no_other_run(tiny_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.yaml.77").write_text("half")
    train(tiny_run("resume=true"))


def test_a_directory_of_something_else_is_refused(tiny_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds no run \(thesis.tex\)"):
        train(tiny_run("resume=true"))


def test_a_directory_that_cannot_be_made_is_named(tiny_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to run_dir="):
        train(tiny_run(f"run_dir={tmp_path}/file/run"))


def test_a_directory_without_permission_is_named(tiny_run, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", denied)  # root, as which tests may run, may write anywhere
    with pytest.raises(ConfigError, match="cannot write to run_dir=.*Permission denied"):
        train(tiny_run())


def poison(step, monkeypatch, value):
    """Make the loss of ``step`` not finite."""
    forward = train_loop.NestedObjective.forward
    calls = iter(range(10**6))

    def poisoned(self, images, labels, weights):
        total, losses = forward(self, images, labels, weights)
        return (total * value if next(calls) == step else total), losses

    monkeypatch.setattr(train_loop.NestedObjective, "forward", poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(
    tiny_run, monkeypatch, value
):
    cfg = tiny_run()
    poison(6, monkeypatch, value)
    with pytest.raises(NonFiniteError, match=r"not finite at step 6.*last good state"):
        train(cfg)
    state = load_checkpoint(cfg.run_dir)
    assert state["step"] == 4  # the first epoch's end
    assert all(torch.isfinite(t).all() for t in state["model"].values())


def test_weights_that_are_not_finite_are_never_saved(tiny_run, monkeypatch):
    """The last step's loss can be finite and its update not."""
    cfg = tiny_run("optim.epochs=1")
    monkeypatch.setattr(
        train_loop, "learning_rate", lambda step, **_: float("inf") if step == 3 else 0.01
    )
    with pytest.raises(
        NonFiniteError, match=r"a weight or statistic is not finite at step 3.*nothing was saved"
    ):
        train(cfg)
    assert not Path(cfg.run_dir, "checkpoint.pt").exists()


@pytest.mark.parametrize("what", ["buffer", "average", "momentum"])
def test_nothing_that_is_saved_may_be_infinite(tiny_run, monkeypatch, what):
    cfg = tiny_run("optim.ema=0.9")
    update = TrainState.update
    steps = iter(range(100))

    def spoiling(self, lr):
        update(self, lr)
        if next(steps) == 6:
            spoilt = {
                "buffer": lambda: next(b for b in self.model.buffers() if b.ndim),
                "average": lambda: next(self.average.module.parameters()),
                "momentum": lambda: next(iter(self.optimizer.state.values()))["momentum_buffer"],
            }
            spoilt[what]().data.fill_(float("inf"))

    monkeypatch.setattr(TrainState, "update", spoiling)
    with pytest.raises(NonFiniteError, match="not finite"):
        train(cfg)
    assert load_checkpoint(cfg.run_dir)["step"] == 4


def test_two_trainings_do_not_share_a_folder(tiny_run):
    cfg = tiny_run()
    Path(cfg.run_dir).mkdir()
    with (
        alone(Path(cfg.run_dir) / "training", wait=False),
        pytest.raises(ConfigError, match="is being trained into"),
    ):
        train(cfg)
    train(cfg)


def test_disk_full_while_saving_keeps_the_previous_checkpoint(tiny_run, monkeypatch):
    cfg = tiny_run()
    written = iter(range(10))
    fsync = os.fsync

    def full_at_the_second_checkpoint(handle):
        # config.yaml, env.json, and a checkpoint after each epoch are flushed
        if next(written) == 3:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_at_the_second_checkpoint)
    with pytest.raises(CheckpointError, match=r"No space left.*before it is intact"):
        train(cfg)
    assert load_checkpoint(cfg.run_dir)["step"] == 4
    hidden = [p.name for p in Path(cfg.run_dir).iterdir() if p.name.startswith(".")]
    assert hidden == [".training.lock"]
    monkeypatch.undo()
    train(dataclasses.replace(cfg, resume=True))
    assert load_checkpoint(cfg.run_dir)["step"] == 8


@pytest.mark.parametrize("overrides", [("head.sampled=2",), ("head.weights=[0,1,2]",)])
def test_sampled_and_weighted_granularities_train(tiny_run, overrides):
    cfg = tiny_run(*overrides)
    assert load_model(train(cfg)).granularities == [2, 4, 16]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("head.granularities=[2,32]", "head.granularities: granularity 32 exceeds .* 16"),
        ("head.granularities=[0,2]", "head.granularities: .*positive"),
        ("head.granularities=[4,2]", "strictly increasing"),
        ("head.granularities=[]", "head.granularities: .*empty"),
        ("head.weights=[1,1]", "2 loss weights"),
        ("head.sampled=9", r"2\.\.3, got 9"),
        ("optim.batch_size=64", "64"),
        ("data.holdout=48", "48"),
        ("device=warp", "device=warp"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_step(tiny_run, override, message):
    from mrl.distributed import pick_device

    cfg = tiny_run(override)
    with pytest.raises(ValueError, match=message):
        fit(cfg, Ranks(), pick_device(cfg.device))
    assert not Path(cfg.run_dir, "metrics.jsonl").exists()


def run_train(*overrides, **kwargs):
    return subprocess.run(
        [sys.executable, "train.py", *overrides], cwd=ROOT, capture_output=True, text=True, **kwargs
    )


TINY = ["data=synthetic", "backbone.widths=[8,16]", "backbone.blocks=[1,1]"]
TINY += ["head.granularities=[2,16]", "optim.batch_size=16"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.epoch=3", "epoch"),
        ("+optim.epoch=3", "epoch"),
        ("head.granularities=[2,99]", "error: head.granularities: granularity 99 exceeds"),
        ("backbone.name=resnet81", "error: backbone.widths"),
        ("optim.epochs=0", "error: optim.epochs must be at least 1, got 0"),
    ],
)
def test_the_command_explains_what_is_wrong(tmp_path, override, message):
    done = run_train(*TINY, override, f"run_dir={tmp_path}/run")
    assert done.returncode != 0
    assert message in done.stderr
    if not override.endswith("epoch=3"):  # Hydra words those itself
        assert "Traceback" not in done.stderr


def test_ctrl_c_leaves_a_resumable_state(tmp_path):
    command = [sys.executable, "train.py", *TINY, "optim.epochs=9999", f"run_dir={tmp_path}/run"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "resume=true goes on" in stderr
    assert load_checkpoint(tmp_path / "run")["step"] > 0


def test_the_first_try_says_what_became_of_the_warm_up(tiny_run, capsys):
    cfg = tiny_run("optim.epochs=1", "optim.warmup_epochs=2")
    train(cfg)
    assert "optim.warmup_epochs=2 does not fit into 1 epoch(s)" in capsys.readouterr().out
    assert json.loads(Path(cfg.run_dir, "env.json").read_text())["resolved"]["warmup_steps"] == 1


@pytest.mark.parametrize(("start", "said"), [("backbone.init=null", True), (None, False)])
def test_a_frozen_encoder_drawn_at_random_is_pointed_out(tiny_run, tmp_path, capsys, start, said):
    first = tiny_run(f"run_dir={tmp_path}/first")
    start = start or f"backbone.init={train(first)}"
    capsys.readouterr()
    train(tiny_run("backbone.trainable=[layers.4]", start))
    assert ("stays as it was drawn at random" in capsys.readouterr().out) == said


def test_a_compiled_model_says_that_it_compiles(tiny_run, monkeypatch, capsys):
    """The compiler itself, which takes a minute, has its own tests."""
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    train(tiny_run("compile=true"))
    out = capsys.readouterr().out
    assert out.count("torch.compile: the first step compiles the model") == 1
    assert out.count("torch.compile: done in 0 s") == 1
    assert out.index("done in") < out.index("epoch 1/2")

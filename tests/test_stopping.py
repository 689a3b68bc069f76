"""Signals of a scheduler, and what is left on the disk."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from interrupts import stop_at

from mrl.checkpoint import load_checkpoint
from mrl.distributed import Ranks
from mrl.stopping import SIGNALS, StoppedError
from mrl.train_loop import fit

ROOT = Path(__file__).parent.parent


def train(cfg):
    return fit(cfg, Ranks(), torch.device("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_schedulers_signal_saves_the_step_at_hand(tiny_run, monkeypatch, number):
    cfg = tiny_run()
    before = [signal.getsignal(each) for each in SIGNALS]
    with monkeypatch.context() as patch:
        stop_at(5, patch, number)
        with pytest.raises(StoppedError, match=f"{number.name} after step 6, and saved"):
            train(cfg)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert load_checkpoint(cfg.run_dir)["step"] == 6
    assert not Path(cfg.run_dir, "finished").exists()
    train(dataclasses.replace(cfg, resume=True))
    assert Path(cfg.run_dir, "finished").exists()


def test_the_signals_former_handler_has_the_last_word(tiny_run, monkeypatch):
    """submitit's asks for the job to be queued again, and ends the process."""
    cfg = tiny_run()

    def requeue(number, frame):
        raise SystemExit(f"queued again, with step {load_checkpoint(cfg.run_dir)['step']} saved")

    former = signal.signal(signal.SIGUSR2, requeue)
    try:
        stop_at(2, monkeypatch, signal.SIGUSR2)
        with pytest.raises(SystemExit, match="queued again, with step 3 saved"):
            train(cfg)
    finally:
        signal.signal(signal.SIGUSR2, former)


def test_a_former_handler_of_sigterm_is_left_in_place(tiny_run, monkeypatch):
    """submitit's lets it pass, since SLURM queues the job again only if SLURM ends it."""
    cfg = tiny_run()
    passed = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: passed.append(number))
    try:
        stop_at(2, monkeypatch, signal.SIGTERM)
        train(cfg)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert passed == [signal.SIGTERM]
    assert Path(cfg.run_dir, "finished").exists()


def test_a_run_killed_just_before_it_was_marked_finished_is_marked_later(tiny_run):
    cfg = tiny_run()
    train(cfg)
    Path(cfg.run_dir, "finished").unlink()
    train(dataclasses.replace(cfg, resume=True))
    assert Path(cfg.run_dir, "finished").exists()


def test_a_signal_in_the_last_step_finishes_the_run(tiny_run, monkeypatch):
    cfg = tiny_run()
    stop_at(7, monkeypatch, signal.SIGTERM)
    train(cfg)
    assert Path(cfg.run_dir, "finished").exists()


TINY = ["data=synthetic", "backbone.widths=[8,16]", "backbone.blocks=[1,1]"]
TINY += ["head.granularities=[2,16]", "optim.batch_size=16", "optim.epochs=9999"]


def stopped_by(number, command, run_dir):
    """The command's result when it is sent a signal some time after it began to train."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "train.py", *TINY, f"run_dir={run_dir}"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if "epoch 2/9999" in line:
            break
    process.send_signal(number)
    output, _ = process.communicate(timeout=100)
    return process.returncode, output


def test_the_exit_code_tells_that_it_was_stopped(tmp_path):
    code, output = stopped_by(signal.SIGUSR1, [sys.executable], tmp_path / "run")
    assert code == 128 + signal.SIGUSR1
    assert "resume=true goes on" in output
    assert "Traceback" not in output


def test_torchrun_told_to_end_leaves_one_state_of_all_ranks(tmp_path):
    """torchrun hands SIGTERM on to the ranks at slightly different times: they must agree."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    _, output = stopped_by(signal.SIGTERM, [*torchrun, "--standalone"], tmp_path / "run")
    state = load_checkpoint(tmp_path / "run")
    assert "stopped by SIGTERM" in output
    assert len(state["rng"]) == 2
    assert state["step"] > 2

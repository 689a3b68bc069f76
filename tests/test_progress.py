"""Bars on a terminal, lines in a log, by the real commands and with a clock of our own."""

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mrl import progress
from mrl.progress import counted

ROOT = Path(__file__).parent.parent
TINY = ["data=synthetic", "data.num_images=80", "data.holdout=16", "backbone.widths=[8,16]"]
TINY += ["backbone.blocks=[1,1]", "head.granularities=[2,16]", "optim.batch_size=4"]
TINY += ["optim.epochs=30", "tracking.log_every=1", "name=study", "seed=3"]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_say_what_one_wants_to_know(clock, capsys):
    with progress.progress("study seed 3", 1_000_000, "img", done=400_000) as bar:
        bar.set_postfix(step=4, loss="1.234")
        clock.now = 60.0
        bar.update(60_000)
    line = capsys.readouterr().err
    assert line == (
        "study seed 3: 460k/1.00M img (46%), 1.00k img/s, step 4, loss 1.234, 09:00 left\n"
    )


def test_the_number_of_lines_stays_small(clock, capsys):
    with progress.progress("study", 10**9, "img") as bar:
        for step in range(3 * 24 * 3600):  # three days, a step each second
            clock.now = float(step)
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert 400 < len(lines) < 600  # at last every ten minutes
    assert lines[0].startswith("study: 31.0/1.00G img")


def test_what_is_soon_done_says_nothing(clock, capsys):
    assert list(counted([1, 2, 3], "retrieval", "plan")) == [1, 2, 3]
    with progress.progress("fetch", None, "B") as bar:
        bar.update(1 << 20)
    assert capsys.readouterr().err == ""


def test_an_unknown_total_and_a_rank_that_is_not_shown(clock, capsys):
    for shown in (True, False):
        with progress.progress("fetch", None, "B", shown=shown) as bar:
            clock.now += 40
            bar.update(80_000_000)
    assert capsys.readouterr().err == "fetch: 80.0M, 2.00M B/s\n"


def test_training_into_a_pipe_has_its_epochs_and_no_bar(tmp_path):
    command = [sys.executable, "train.py", *TINY, f"run_dir={tmp_path}/run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out top-1") == 30
    assert "\r" not in done.stdout + done.stderr
    assert len(done.stderr.splitlines()) < 5  # 480 steps, each of them logged


def test_training_on_a_terminal_has_a_bar_named_after_the_run(tmp_path):
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    command = [sys.executable, "train.py", *TINY, f"run_dir={tmp_path}/run"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(controller, 1 << 16)
        except OSError:  # the other side is closed
            break
    process.communicate(timeout=200)
    assert process.returncode == 0
    assert re.search(r"\rstudy seed 3: +\d+%\|", shown.decode())
    assert re.search(r"100%\|.*step=480", shown.decode())

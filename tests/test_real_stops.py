"""Real processes that are stopped and killed: what was trained is kept, and one line says so."""

import os
import signal
import time
from pathlib import Path

import pytest
from real_runs import RealRun, write_pictures

from mrl.checkpoint import load_checkpoint

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds processes in Linux's /proc"
)
SYNTHETIC = ["data=synthetic", "optim.batch_size=16"]


def one_line(run: RealRun, *words: str) -> str:
    """The only line of its output with these words; it holds no traceback of ours."""
    lines = [line for line in run.output().splitlines() if all(word in line for word in words)]
    assert len(lines) == 1 and 'train.py", line' not in run.output(), run.output()
    return lines[0]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_stop_of_the_whole_group_saves(tmp_path: Path, number: int) -> None:
    """As SLURM, ``timeout``, a terminal and a container stop: workers get the signal, too."""
    run = RealRun(tmp_path / "run", *write_pictures(tmp_path / "pictures"))
    run.wait_until_logged(5)
    run.wait_for_children(2)
    run.signal_all(number)
    assert run.end() == (128 + number if number == signal.SIGTERM else 1)
    one_line(run, "resume=true goes on")
    steps = len((run.folder / "metrics.jsonl").read_text().splitlines())
    assert load_checkpoint(run.folder)["step"] == steps >= 5


@pytest.mark.slow
def test_a_killed_worker_costs_no_step(tmp_path: Path) -> None:
    run = RealRun(tmp_path / "run", *write_pictures(tmp_path / "pictures"))
    run.wait_until_logged(5)
    os.kill(run.wait_for_children(2)[0], signal.SIGKILL)
    assert run.end() == 1
    step = load_checkpoint(run.folder)["step"]
    assert one_line(run, "SIGKILL").endswith(f"Step {step} is saved; the same command with "
                                             "resume=true goes on")  # fmt: skip
    assert step == len((run.folder / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    run = RealRun(tmp_path / "run", *write_pictures(tmp_path / "pictures"))
    run.wait_until_logged(5)
    workers = run.wait_for_children(2)
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)


@pytest.mark.slow
def test_many_ctrl_cs_are_one(tmp_path: Path) -> None:
    run = RealRun(tmp_path / "run", *SYNTHETIC)
    run.wait_until_logged(5)
    for _ in range(10):
        if run.process.poll() is None:
            run.signal_all(signal.SIGINT)
        time.sleep(0.02)
    run.end()
    one_line(run, "interrupted; the same command with resume=true goes on")
    assert "Traceback" not in run.output()


@pytest.mark.slow
def test_a_stop_before_the_first_step_says_so(tmp_path: Path) -> None:
    run = RealRun(tmp_path / "run", *write_pictures(tmp_path / "pictures", per_class=5000))
    while not (run.folder).exists():  # the data are looked at next
        assert run.process.poll() is None, run.output()
        time.sleep(0.01)
    run.signal_all(signal.SIGTERM)
    assert run.end() == 128 + signal.SIGTERM
    one_line(run, "stopped by SIGTERM while no step was at hand")


@pytest.mark.slow
def test_a_rank_that_is_left_alone_says_so_in_a_line(tmp_path: Path) -> None:
    run = RealRun(tmp_path / "run", *SYNTHETIC, ranks=2)
    run.wait_until_logged(5)
    os.kill(run.wait_for_children(2)[1], signal.SIGKILL)
    assert run.end() == 1
    one_line(run, "error: another rank is gone", "resume=true")


@pytest.mark.slow
def test_a_second_sigterm_ends_a_rank_that_waits_for_another(tmp_path: Path) -> None:
    run = RealRun(tmp_path / "run", *SYNTHETIC, ranks=2)
    run.wait_until_logged(5)
    waiting, frozen = run.wait_for_children(2)
    os.kill(frozen, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(waiting, signal.SIGTERM)
    time.sleep(3)
    assert Path(f"/proc/{waiting}/exe").exists()
    os.kill(waiting, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while "ended at a second SIGTERM" not in run.output():
        assert time.monotonic() < deadline, run.output()
        time.sleep(0.1)
    os.kill(frozen, signal.SIGKILL)
    assert run.end() == 1

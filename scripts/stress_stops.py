"""Stops and kills real training processes, and counts what was lost.

``python scripts/stress_stops.py --tries 5``: on a CPU, some 20 s a try; the steps are drawn by
``--seed``. A try is clean if the run ended, said why in one line, and showed no traceback of
train.py. Lost are the steps that were done and are not in the checkpoint (there is none but of a
run's end: save.every=0). bash scripts/stress_resume.sh looks at what comes after a stop.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tabulate import tabulate

from mrl.checkpoint import CheckpointError, load_checkpoint
from tests.real_runs import RealRun, write_pictures

SYNTHETIC = ["data=synthetic", "optim.batch_size=16"]


def stop_group(run: RealRun) -> None:
    run.signal_all(signal.SIGTERM)


def press_ctrl_c(run: RealRun) -> None:
    run.signal_all(signal.SIGINT)


def kill_worker(run: RealRun) -> None:
    os.kill(run.wait_for_children(2)[0], signal.SIGKILL)


def kill_rank(run: RealRun) -> None:
    os.kill(random.choice(run.wait_for_children(2)), signal.SIGKILL)


def freeze_rank(run: RealRun) -> None:
    """And stop the other, twice: it waits for the frozen one."""
    waiting, frozen = run.wait_for_children(2)
    os.kill(frozen, signal.SIGSTOP)
    for pause in (3, 12):
        os.kill(waiting, signal.SIGTERM)
        time.sleep(pause)
    os.kill(frozen, signal.SIGKILL)


# What is done, to how many ranks (two workers decode for a rank alone), and the line that is due.
CASES: dict[str, tuple[Callable[[RealRun], None], int, str]] = {
    "SIGTERM to all, 2 workers": (stop_group, 1, "stopped by SIGTERM after step"),
    "SIGINT to all, 2 workers": (press_ctrl_c, 1, "interrupted;"),
    "SIGKILL to a worker": (kill_worker, 1, "error: a data worker"),
    "SIGTERM to all, 2 ranks": (stop_group, 2, "stopped by SIGTERM"),
    "SIGKILL to a rank": (kill_rank, 2, "error: another rank is gone"),
    "SIGSTOP to a rank, SIGTERM to the other": (freeze_rank, 2, "ended at a second SIGTERM"),
}


def steps_lost(run: RealRun) -> int:
    done = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    try:
        return done - load_checkpoint(run.folder)["step"]
    except CheckpointError:
        return done


def attempt(case: str, folder: Path, pictures: list[str]) -> tuple[bool, int]:
    """(whether it was clean, steps lost) of one run that is disturbed at a random moment."""
    disturb, ranks, line = CASES[case]
    run = RealRun(folder, *(SYNTHETIC if ranks > 1 else pictures), ranks=ranks)
    try:
        run.wait_until_logged(random.randint(1, 60))
        time.sleep(random.uniform(0, 0.1))
        disturb(run)
        run.end()
    finally:
        run.clear()
    clean = line in run.output() and 'train.py", line' not in run.output()
    if not clean:
        print(f"{case}: {run.log} lacks {line!r} or has a traceback", file=sys.stderr)
    return clean, steps_lost(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=5, help="of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    options = parser.parse_args()
    random.seed(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="stress-stops-"))
    pictures = write_pictures(folder / "pictures")
    rows = []
    for number, case in enumerate(options.cases):
        tries = [attempt(case, folder / f"{number}-{i}", pictures) for i in range(options.tries)]
        lost = [steps for _, steps in tries]
        rows.append([case, len(tries), sum(clean for clean, _ in tries), max(lost), sum(lost)])
        print(rows[-1], file=sys.stderr)
    header = ["case", "tried", "clean", "steps lost, most", "in all"]
    print(tabulate(rows, header, tablefmt="github"))
    print(f"the runs' output: {folder}")


if __name__ == "__main__":
    main()

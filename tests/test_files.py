"""Files that are whole or not there; locks and leftovers with real processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mrl.files import LockedError, alone, mark_as_ours, remove_leftovers, write_atomically

ROOT = Path(__file__).parent.parent


def start(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


HOLD = """
import sys, time
from pathlib import Path
from mrl.files import alone
with alone(Path(sys.argv[1]), wait=False):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_with_its_holder(tmp_path):
    holder = start(HOLD, tmp_path / "x")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError), alone(tmp_path / "x", wait=False):
        pass
    holder.kill()
    holder.wait()
    with alone(tmp_path / "x", wait=True):
        pass


APPEND = """
import sys
from pathlib import Path
from mrl.evaluation.rows import Row, append_rows
for i in range(40):
    row = dict(run=sys.argv[2], experiment="e", method="m", seed=i, commit="c", dataset="d")
    row |= dict(split="test", evaluator="knn", metric="top1", granularity=8, value=1.0, n=1)
    append_rows(Path(sys.argv[1]), [Row(**row)])
"""


def test_no_row_is_lost_when_processes_add_together(tmp_path):
    path = tmp_path / "rows.jsonl"
    writers = [start(APPEND, path, name) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = [(row["run"], row["seed"]) for row in map(json.loads, path.read_text().splitlines())]
    assert sorted(found) == sorted((name, i) for name in "abc" for i in range(40))


def age(path):
    os.utime(path, (time.time() - 1000,) * 2)


def test_what_a_dead_process_left_is_removed(tmp_path):
    path = tmp_path / "checkpoint.pt"
    dead, alive, young, other = (
        tmp_path / f".checkpoint.pt.{n}" for n in ("999991", "999992", "999993", "lock")
    )
    folder = tmp_path / ".checkpoint.pt.999994"
    folder.mkdir()
    for file in (dead, alive, young, other, folder / "x"):
        file.touch()
    for file in (dead, alive, other, folder):
        age(file)
    with alive.open("rb") as held:
        mark_as_ours(held.fileno())
        write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".checkpoint.pt.999992",
        ".checkpoint.pt.999993",
        ".checkpoint.pt.lock",
        "checkpoint.pt",
    ]


def test_what_was_being_replaced_stays_while_there_is_nothing_else(tmp_path):
    old = tmp_path / ".index.999991.old"
    old.mkdir()
    age(old)
    remove_leftovers(tmp_path / "index")
    assert old.exists()
    (tmp_path / "index").mkdir()
    remove_leftovers(tmp_path / "index")
    assert not old.exists()

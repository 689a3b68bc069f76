"""The runs of a job array are those of ``train.py -m``, in its order."""

import runpy
import sys
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

SWEEP = str(Path(__file__).parent.parent.parent / "scripts/slurm/sweep.py")
WORDS = ["experiment=fashion_mnist_ff", "head.granularities=[2],[8,16]", "seed=range(1,4)"]
WORDS += ["run_dir='a b/${seed} ${optim.base_lr} ${head.kind} ${head.granularities}'"]
WORDS += ["optim.base_lr=0.1,2e-1", "head=choice(nested,tied)"]


def called(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
    runpy.run_path(SWEEP, run_name="__main__")


def test_the_runs_are_hydras(monkeypatch, capsys):
    parsed = OverridesParser.create().parse_overrides(WORDS)
    (expected,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    assert len(expected) == 2 * 3 * 2 * 2
    for task in (0, 1, 5, 23):
        called(monkeypatch, "--task", str(task), *WORDS)
        assert capsys.readouterr().out.splitlines() == list(expected[task])
    called(monkeypatch, *WORDS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[5] == f"5: {' '.join(expected[5])}"
    assert len(lines) == 24


def test_names_stay_as_they_were_typed(monkeypatch, capsys):
    called(monkeypatch, "--task", "1", "name=3.10,1e5", "data.root=2024_05")
    assert capsys.readouterr().out.splitlines() == ['name="1e5"', 'data.root="2024_05"']


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=6", "seed=0,1,2,3,4,5"], "make 6 run.s., so there is no run 6: .* --array=0-5"),
        (["seed=[0"], "error: no viable alternative at input '.0'"),
        (["--task=0", "optim.epochs=3,4"], "#0 optim.epochs=3 and #1 .* share run_dir=outputs/"),
        (["seed=0,-1"], "#1 seed=-1: seed must be at least 0, got -1; none of the 2 jobs"),
    ],
    ids=["a task too many", "no override", "one directory for two", "no seed"],
)
def test_refused(monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message):
        called(monkeypatch, *arguments)

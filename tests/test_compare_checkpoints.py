"""Two checkpoints are compared bit for bit, and the first difference is named."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from mrl.checkpoint import load_checkpoint, save_checkpoint
from mrl.distributed import Ranks
from mrl.train_loop import fit

SCRIPT = str(Path(__file__).parent.parent / "scripts/compare_checkpoints.py")


@pytest.fixture
def compared(monkeypatch, capsys, tmp_path):
    """Exit code and output for a state against a changed copy of it."""

    def compare(checkpoint, change):
        state = load_checkpoint(checkpoint)
        change(state)
        save_checkpoint(tmp_path / "other.pt", state)
        arguments = ["compare_checkpoints.py", str(checkpoint), str(tmp_path / "other.pt")]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(SCRIPT, run_name="__main__")
        return end.value.code, capsys.readouterr()

    return compare


def test_what_differs_is_named(tiny_run, compared):
    checkpoint = fit(tiny_run(), Ranks(), torch.device("cpu"))
    name = next(n for n in load_checkpoint(checkpoint)["model"] if n.endswith("weight"))

    def another_folder(state):
        state["config"]["run_dir"] = "elsewhere"

    code, shown = compared(checkpoint, another_folder)
    assert code == 0
    assert "the same, bit for bit, at step 8" in shown.out

    def one_number(state):
        weight = state["model"][name]
        first = (0,) * weight.ndim
        weight[first] = torch.nextafter(weight[first], torch.tensor(9.0))

    code, shown = compared(checkpoint, one_number)
    assert code == 1
    assert f"model.{name}: 1 of " in shown.out

    code, shown = compared(checkpoint, lambda state: state.update(step=7))
    assert code == 1
    assert "step: 8 against 7" in shown.out

    code, shown = compared(checkpoint, lambda state: state["model"].pop(name))
    assert code == 1
    assert f"model.{name}: only in the first" in shown.out


def test_a_file_that_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["compare_checkpoints.py", f"{tmp_path}/a", f"{tmp_path}/b"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert end.value.code == 2
    assert "there is no checkpoint at" in capsys.readouterr().err

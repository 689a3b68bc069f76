"""Sweeps with Hydra's multirun, as the README shows them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mrl.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent


def test_a_sweep_gives_each_run_its_own_directory(tmp_path):
    options = ["data=synthetic", "backbone.widths=[8,16]", "backbone.blocks=[1,1]"]
    options += ["optim.epochs=1", "optim.warmup_epochs=0", "hydra.sweep.dir=" + str(tmp_path)]
    options += ["seed=0,1", "head.granularities=[2],[16]"]
    where = f"run_dir={tmp_path}/m${{head.granularities.0}}-seed${{seed}}"
    command = [sys.executable, "train.py", "-m", "experiment=fashion_mnist_ff", *options, where]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    for m in (2, 16):
        for seed in (0, 1):
            config = load_checkpoint(tmp_path / f"m{m}-seed{seed}")["config"]
            assert (config["head"]["granularities"], config["seed"]) == ([m], seed)


SMALL = ["data=synthetic", "data.num_images=80", "data.holdout=16", "backbone.widths=[8,16]"]
SMALL += ["backbone.blocks=[1,1]", "optim.epochs=1", "optim.batch_size=16"]


def swept(*words, script="train.py", **env):
    command = [sys.executable, script, "-m", *words]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=os.environ | env
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=0,-1,2"], "#1 seed=-1: seed must be at least 0, got -1; none of the 3 jobs"),
        (["data=synthetic,nowhere"], "#1 data=nowhere: In 'train': Could not find 'data/nowhere'"),
        (["optim.epochs=1,2"], "-epochs${optim.epochs}'; none of the 2 jobs was started"),
        (["head=nested,tied"], "-head${hydra:runtime.choices.head}'"),
        (["optim.betas=[0.9,0.99],[0.8,0.9]", "seed=0,1"], "seed${seed}-betas${optim.betas}'"),
        (["seed=0,0"], "#0 and #1 would share run_dir=outputs/default/seed0, having the same"),
        (["run_dir=outputs/a,outputs/b/../a"], "#0 run_dir=outputs/a and #1 run_dir=outputs/b/."),
        (["experiment=finetune_mrl", "seed=0,1"], "no value for backbone.init"),
        (["optim.epochs=1,2", "hydra/launcher=submitit_local"], "none of the 2 jobs was started"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_job_that_cannot_be_is_found_before_the_first_starts(words, message):
    if "hydra/launcher=submitit_local" in words:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    done = swept(*words)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert not done.stdout


def test_the_advice_against_a_clash_works(tmp_path):
    """Values of a list and choices of a group, too, become parts of a path."""
    words = ["head=nested,tied", "optim.betas=[0.9,0.99],[0.8,0.9]", "head.granularities=[2]"]
    shared = f"run_dir={tmp_path}/${{name}}/seed${{seed}}"
    advised = swept(*SMALL, *words, shared).stderr.split("as in '")[1].split("';")[0]
    done = swept(*SMALL, *words, advised)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list(tmp_path.glob("default/*/finished"))) == 4


def test_a_job_that_fails_ends_no_other(tmp_path):
    words = [*SMALL, "head.granularities=[2],[99],[16],[98]", f"hydra.sweep.dir={tmp_path}"]
    words += [f"run_dir={tmp_path}/m${{head.granularities.0}}"]
    done = swept(*words)
    assert done.returncode == 1
    assert sorted(path.parent.name for path in tmp_path.glob("*/finished")) == ["m16", "m2"]
    said = done.stderr.split("2 job(s) of the sweep failed:\n")[1]
    assert said.splitlines()[0] == (
        "  #1 head.granularities=[99]: error: head.granularities: granularity 99 exceeds the "
        "embedding width 16"
    )
    assert "#3 head.granularities=[98]" in said and "resume=true goes on" in said
    assert "Traceback" not in done.stderr

    again = swept(*words, "resume=true")
    assert again.stdout.count("finished already") == 2
    assert "2 job(s) of the sweep failed" in again.stderr


def test_a_fault_of_the_code_shows_its_trace_and_ends_no_other(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import runpy, mrl.train_loop\n"
        "fit = mrl.train_loop.fit\n"
        "def broken(cfg, *rest): return [][0] if cfg.seed == 0 else fit(cfg, *rest)\n"
        "mrl.train_loop.fit = broken\n"
        "runpy.run_path('train.py', run_name='__main__')\n"
    )
    where = f"run_dir={tmp_path}/seed${{seed}}"
    done = swept(*SMALL, "seed=0,1", where, script=str(broken), PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert "IndexError" in done.stderr and "Traceback" in done.stderr
    assert (tmp_path / "seed1" / "finished").exists()


def test_a_sweep_that_is_interrupted_names_what_is_left(tmp_path):
    command = [sys.executable, "train.py", "-m", *SMALL, "optim.epochs=9999", "seed=0,1,2"]
    command += [f"run_dir={tmp_path}/seed${{seed}}"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if "epoch 2/9999" in line:
            break
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    left = "3 job(s) of the sweep not run to the end:\n  #0 seed=0\n  #1 seed=1\n  #2 seed=2\n"
    assert left in output
    assert not (tmp_path / "seed1").exists()


def test_evaluations_are_swept_alike(tmp_path):
    train = swept(*SMALL, "seed=0,1", f"run_dir={tmp_path}/seed${{seed}}")
    assert train.returncode == 0, train.stderr[-2000:]
    refused = swept(f"run={tmp_path}/seed0,{tmp_path}/seed1", "batch_size=0", script="eval.py")
    assert "none of the 2 jobs was started" in refused.stderr
    (tmp_path / "seed0" / "checkpoint.pt").write_bytes(b"damaged")
    words = [f"run={tmp_path}/seed0,{tmp_path}/seed1", "evals=[classify]"]
    done = swept(*words, script="eval.py")
    assert done.returncode == 1
    assert (tmp_path / "seed1" / "rows.jsonl").exists()
    assert "1 job(s) of the sweep failed:\n  #0 run=" in done.stderr

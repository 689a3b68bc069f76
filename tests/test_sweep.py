"""Sweeps with Hydra's multirun, as the README shows them."""

import subprocess
import sys
from pathlib import Path

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

"""torchrun starts all ranks again when one dies: the run ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONS = ["data=synthetic", "data.num_images=304", "data.image_size=32", "data.holdout=16"]
OPTIONS += ["backbone.widths=[16,32,64]", "head.granularities=[4,64]", "optim.batch_size=32"]
OPTIONS += ["optim.epochs=10", "optim.precision=fp32", "device=cpu", "tracking.log_every=1"]
OPTIONS += ["save.every=5", "resume=true"]
# Without it the new ranks meet the addresses of the dead ones.
ENV = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def start(run_dir):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node=2", "--max-restarts=2"]
    return subprocess.Popen(
        [*torchrun, "train.py", *OPTIONS, f"run_dir={run_dir}"],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def lines_logged(run_dir):
    path = run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def process_of_rank(torchrun, rank):
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise LookupError(f"torchrun has no process of rank {rank} among {children}")


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="finds the ranks in Linux's /proc"
)
def test_a_killed_rank_costs_a_few_steps_and_changes_nothing(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    output, _ = start(straight).communicate(timeout=250)
    assert (straight / "finished").exists(), output[-3000:]

    torchrun = start(killed)
    while lines_logged(killed) < 13:
        assert torchrun.poll() is None, torchrun.communicate()[0][-3000:]
        time.sleep(0.02)
    os.kill(process_of_rank(torchrun, 1), signal.SIGKILL)
    output, _ = torchrun.communicate(timeout=250)
    assert torchrun.returncode == 0, output[-3000:]
    assert "resumes at step" in output

    compare = [sys.executable, "scripts/compare_checkpoints.py", str(straight), str(killed)]
    compared = subprocess.run(compare, cwd=ROOT, capture_output=True, text=True)
    assert compared.returncode == 0, compared.stdout
    assert "bit for bit, at step 90" in compared.stdout

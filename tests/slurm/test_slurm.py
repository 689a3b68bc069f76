"""Jobs on a real SLURM: preempted, stopped, queued again, arrays, and sweeps by submitit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cluster import HOST, two_nodes, wait_for, why_not

from mrl.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent.parent
SBATCH = "scripts/slurm/train.sbatch"
OPTIONS = ["data=synthetic", "data.num_images=304", "data.image_size=32", "data.holdout=16"]
OPTIONS += ["backbone.widths=[16,32,64]", "optim.batch_size=32", "optim.precision=fp32"]
OPTIONS += ["device=cpu", "tracking.log_every=1"]
NESTED = [*OPTIONS, "head.granularities=[4,64]", "optim.epochs=20"]
SECONDS = 200  # far more than anything takes here

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=f"needs SLURM: {why_not()}"),
]


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    with two_nodes(tmp_path_factory.mktemp("slurm")):
        yield


def run(*command, cwd=ROOT, **env):
    env = os.environ | {"OMP_NUM_THREADS": "1"} | env
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def state_of(job):
    """JobState, Restarts, ExitCode and so on of a job or a task of an array."""
    shown = run("scontrol", "-o", "show", "job", job).split()
    return dict(word.split("=", 1) for word in shown if "=" in word)


def text_of(log):
    return log.read_text(errors="replace")  # two nodes' progress bars cut each other's characters


def wait_for_end(job, log):
    def ended():
        return state_of(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")

    try:
        wait_for(ended, SECONDS, f"job {job}")
    except TimeoutError as error:
        raise AssertionError(f"{error}; its log: {text_of(log)[-3000:]}") from None
    return state_of(job)


def wait_for_step(run_dir, step):
    path = run_dir / "metrics.jsonl"
    wait_for(
        lambda: path.exists() and len(path.read_text().splitlines()) >= step,
        SECONDS,
        f"step {step}",
    )


def without_speed(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


def test_a_preempted_job_goes_on_and_ends_like_a_straight_run(tmp_path):
    """Two nodes, a rank each; a job of a better partition takes one of them away."""
    preempted, straight, log = tmp_path / "preempted", tmp_path / "straight", tmp_path / "log"
    where = ["--nodes=2", "--exclusive", f"--output={log}"]
    job = run("sbatch", "--parsable", *where, SBATCH, *NESTED, f"run_dir={preempted}")
    wait_for_step(preempted, 10)
    urgent = ["--partition=high", "--nodes=1", f"--output={tmp_path}/urgent"]
    run("sbatch", *urgent, "--wrap=sleep 1")
    wait_for(lambda: state_of(job)["Restarts"] == "1", SECONDS, "the job to be queued again")
    assert not (preempted / "finished").exists()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run(*torchrun, "train.py", *NESTED, f"run_dir={straight}")

    state = wait_for_end(job, log)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), text_of(log)[-3000:]
    assert (preempted / "finished").exists()
    assert "stopped by SIGUSR1" in text_of(log)
    assert "resumes at step" in text_of(log)
    run(sys.executable, "scripts/compare_checkpoints.py", str(preempted), str(straight))
    assert without_speed(preempted) == without_speed(straight)


def test_an_array_trains_two_widths_and_a_stopped_task_goes_on(tmp_path):
    sweep = ["head.granularities=[4],[64]", f"run_dir={tmp_path}/m${{head.granularities.0}}"]
    where = ["--array=0-1", f"--output={tmp_path}/log-%a"]
    job = run("sbatch", "--parsable", *where, SBATCH, *OPTIONS, "optim.epochs=12", *sweep)
    wait_for_step(tmp_path / "m64", 5)
    run("scancel", "--signal=USR1", f"{job}_1")
    for task, (m, restarts) in enumerate([(4, "0"), (64, "1")]):
        log = tmp_path / f"log-{task}"
        state = wait_for_end(f"{job}_{task}", log)
        assert (state["JobState"], state["Restarts"]) == ("COMPLETED", restarts), text_of(log)
        assert (tmp_path / f"m{m}" / "finished").exists()
        assert load_checkpoint(tmp_path / f"m{m}")["config"]["head"]["granularities"] == [m]


def test_a_cancelled_job_saves_and_is_not_queued_again(tmp_path):
    where = ["--parsable", f"--output={tmp_path}/log"]
    options = [*NESTED, "optim.epochs=999", f"run_dir={tmp_path}/run"]
    job = run("sbatch", *where, SBATCH, *options)
    wait_for_step(tmp_path / "run", 5)
    run("scancel", job)
    state = wait_for_end(job, tmp_path / "log")
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0")
    wait_for((tmp_path / "run" / "checkpoint.pt").exists, 30, "its checkpoint")
    assert not run("squeue", "-h")


def test_a_task_without_a_run_is_refused(tmp_path):
    where = ["--array=2", f"--output={tmp_path}/log"]
    job = run("sbatch", "--parsable", *where, SBATCH, *OPTIONS, "seed=0,1")
    assert wait_for_end(f"{job}_2", tmp_path / "log")["JobState"] == "FAILED"
    assert "2 run(s), so there is no run 2: submit with --array=0-1" in text_of(tmp_path / "log")


@pytest.fixture
def pretended(tmp_path):
    """A checkout whose torchrun only says how it was called, and fails."""
    checkout, programs = tmp_path / "checkout", tmp_path / "programs"
    checkout.mkdir()
    programs.mkdir()
    (checkout / "train.py").write_text("print('run_dir: run')")
    torchrun = programs / "torchrun"
    torchrun.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS threads: $*"\nexit 3\n')
    torchrun.chmod(0o755)
    return checkout, f"{programs}:{os.environ['PATH']}"


def test_a_failed_job_is_not_queued_again(pretended, tmp_path):
    checkout, path = pretended
    where = ["--cpus-per-task=8", f"--output={tmp_path}/log"]
    command = ["sbatch", "--parsable", *where, str(ROOT / SBATCH), "name=two words"]
    job = run(*command, cwd=checkout, PATH=path, SLURM_GPUS_ON_NODE="4")
    state = wait_for_end(job, tmp_path / "log")
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "3:0", "0")
    log = text_of(tmp_path / "log")
    assert "2 threads: --nnodes=1 --nproc-per-node=4 --max-restarts=3" in log
    assert "--rdzv-endpoint=127.0.0.1:" in log
    assert "train.py name=two words resume=true" in log


def test_a_sweep_by_submitit_goes_on_after_its_signal(tmp_path):
    """Two jobs of two tasks each, which train together; one is told to make room."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    command = [sys.executable, "train.py", "-m", "hydra/launcher=submitit_slurm"]
    command += ["hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=60"]
    command += [
        f"+hydra.launcher.additional_parameters.nodelist={HOST}"
    ]  # has a name that resolves
    command += [*OPTIONS, "optim.epochs=12", "head.granularities=[4],[64]", "resume=true"]
    command += [f"run_dir={tmp_path}/m${{head.granularities.0}}", f"hydra.sweep.dir={tmp_path}"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_step(tmp_path / "m4", 5)
        job = next(path.name for path in (tmp_path / ".submitit").iterdir() if "_0" in path.name)
        run("scancel", "--signal=USR2", job)
        _, errors = sweep.communicate(timeout=SECONDS)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, errors[-3000:]
    assert state_of(job)["Restarts"] == "1"
    for m in (4, 64):
        assert (tmp_path / f"m{m}" / "finished").exists()
        state = load_checkpoint(tmp_path / f"m{m}")
        assert state["config"]["head"]["granularities"] == [m]
        assert len(state["rng"]) == 2
        assert all(torch.isfinite(each).all() for each in state["model"].values())

"""Two processes under torchrun, joined by gloo, against one process on the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mrl.checkpoint import load_checkpoint, load_model
from mrl.distributed import pick_device

ROOT = Path(__file__).parent.parent

# A network whose norms look at one image at a time: batch norms would see half a batch each.
OPTIONS = ["data=synthetic", "data.image_size=32", "data.num_images=80", "data.holdout=15"]
OPTIONS += ["data.flip=true", "data.pad=2", "backbone=timm", "backbone.name=convnext_atto"]
OPTIONS += ["head.granularities=[2,8,320]", "optim.epochs=2", "optim.batch_size=16"]
OPTIONS += ["optim.warmup_epochs=0.5", "optim.precision=fp32", "tracking.log_every=1", "device=cpu"]


def train(run_dir, *overrides, processes):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, "train.py", *OPTIONS, *overrides, f"run_dir={run_dir}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def metrics_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("overrides", [(), ("head.sampled=2",)], ids=["all", "sampled"])
def test_two_ranks_equal_one_process(tmp_path, overrides):
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, *overrides, processes=1)
    train(two, *overrides, processes=2)

    a, b = load_checkpoint(one), load_checkpoint(two)
    assert len(b["rng"]) == 2
    assert a["model"].keys() == b["model"].keys()
    for name in a["model"]:
        assert torch.allclose(a["model"][name], b["model"][name], rtol=1e-3, atol=1e-4), name
    first_a, first_b = metrics_of(one)[0], metrics_of(two)[0]
    for name in (name for name in first_a if not name.startswith("speed/")):
        assert first_a[name] == pytest.approx(first_b[name], rel=1e-5), name
    assert len(metrics_of(one)) == len(metrics_of(two))


def draws_alike(run_dir):
    """Whether dropout and stochastic depth would draw the same on both ranks."""
    first, second = (rng["cpu"] for rng in load_checkpoint(run_dir)["rng"])
    return torch.equal(first, second)


def test_each_rank_draws_its_own(tmp_path):
    run = tmp_path / "run"
    dropped = ("backbone.drop_path=0.5", "optim.epochs=1")
    train(run, *dropped, processes=1)
    alone = load_checkpoint(run)["rng"]
    train(run, "backbone.drop_path=0.5", "resume=true", "force=true", processes=2)
    assert len(alone) == 1 and not draws_alike(run)
    train(tmp_path / "fresh", *dropped, processes=2)
    assert not draws_alike(tmp_path / "fresh")


def test_two_ranks_resume(tmp_path):
    run = tmp_path / "run"
    train(run, processes=2)
    assert not draws_alike(run)
    done = train(run, "resume=true", processes=2)
    assert done.stdout.count("finished already") == 1  # rank 0 alone speaks


TRANSFORMER = ["backbone=timm", "backbone.name=vit_tiny_patch16_224", "optim=adamw"]
TRANSFORMER += ["head.granularities=[2,192]", "optim.warmup_epochs=0"]


@pytest.mark.slow
def test_shards_of_a_transformer_equal_whole_copies(tmp_path):
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    options = [*TRANSFORMER, "optim.schedule=constant"]
    train(whole, *options, processes=2)
    train(shards, *options, "fsdp=true", "optim.epochs=1", processes=2)
    train(shards, *options, "fsdp=true", "resume=true", "force=true", processes=2)
    a, b = load_checkpoint(whole), load_checkpoint(shards)
    assert a["step"] == b["step"]
    assert a["model"].keys() == b["model"].keys()
    for name in a["model"]:
        assert torch.allclose(a["model"][name], b["model"][name], rtol=1e-3, atol=1e-4), name
    load_model(shards)


def test_one_process_has_nothing_to_shard(tmp_path):
    with pytest.raises(AssertionError, match="there is one: use torchrun"):
        train(tmp_path / "run", "fsdp=true", processes=1)


def test_an_odd_batch_cannot_be_shared(tmp_path):
    with pytest.raises(AssertionError, match="15 cannot be split evenly over 2"):
        train(tmp_path / "run", "optim.batch_size=15", processes=2)


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="device=warp cannot be used here"):
        pick_device("warp")
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="device=cuda cannot be used here"):
            pick_device("cuda")

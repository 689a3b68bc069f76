"""Accumulated gradients, averaged weights, frozen modules, kept checkpoints, mixed images."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mrl import train_loop
from mrl.checkpoint import load_checkpoint, load_model
from mrl.config import ConfigError
from mrl.distributed import Ranks
from mrl.mixing import build_mix
from mrl.train_loop import fit
from mrl.train_state import TrainState, warmed_up

CPU = torch.device("cpu")


def train(cfg):
    return fit(cfg, Ranks(), CPU)


def lines_of(cfg, name):
    lines = [json.loads(x) for x in Path(cfg.run_dir, "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


@pytest.mark.parametrize("parts", [3, 8])
def test_accumulated_gradients_equal_the_whole_batchs(compose_train, tmp_path, parts):
    """A ConvNeXt, as batch norms take their statistics over each part."""
    options = ["data=synthetic", "data.image_size=32", "data.num_images=40", "data.holdout=0"]
    options += ["backbone=timm", "backbone.name=convnext_atto", "optim.epochs=1"]
    options += ["optim.batch_size=8", "optim.warmup_epochs=0", "optim.precision=fp32"]
    whole = compose_train(*options, f"run_dir={tmp_path}/whole")
    cut = compose_train(*options, f"optim.accumulate={parts}", f"run_dir={tmp_path}/cut")
    a, b = (load_checkpoint(train(cfg))["model"] for cfg in (whole, cut))
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-5), name
    (loss,), (loss_cut,) = lines_of(whole, "train/total"), lines_of(cut, "train/total")
    assert loss["train/total"] == pytest.approx(loss_cut["train/total"], rel=1e-5)


def test_the_average_follows_its_definition(tiny_run, monkeypatch):
    cfg = tiny_run("optim.ema=0.3")
    seen = []
    update = TrainState.update

    def noting(self, lr):
        update(self, lr)
        seen.append(copy.deepcopy(self.model.state_dict()))

    monkeypatch.setattr(TrainState, "update", noting)
    checkpoint = train(cfg)
    name = "head.classifiers.16.weight"
    expected = seen[0][name]
    assert len(seen) > 4  # the warm-up ends after three
    for n, weights in enumerate(seen[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights[name]
    saved = load_checkpoint(checkpoint)
    assert torch.allclose(saved["average"][name], expected, atol=1e-6)
    assert not torch.allclose(saved["model"][name], expected, atol=1e-6)
    # The average is what others get.
    assert torch.equal(load_model(checkpoint).state_dict()[name], saved["average"][name])


@pytest.mark.parametrize("steps", [10, 300, 100_000])
def test_an_average_of_any_length_forgets_the_first_weights(steps):
    share = math.prod(warmed_up(0.9999, n) for n in range(1, steps))
    assert share < 1e-3
    assert warmed_up(0.9999, 10**6) == 0.9999


def test_only_the_modules_named_are_trained(tiny_run):
    cfg = tiny_run("backbone.trainable=[layers.4,layers.7.conv2]")
    torch.manual_seed(cfg.seed)
    facts = {"classes": list("0123456789"), "in_channels": 3}
    before = train_loop._build_model(cfg, facts, from_scratch=True).state_dict()
    after = load_checkpoint(train(cfg))["model"]
    for name in before:
        trained = name.startswith(("head.", "backbone.layers.4.", "backbone.layers.7.conv2."))
        # A frozen batch norm keeps its statistics as well.
        assert torch.equal(before[name], after[name]) != trained, name


def test_an_unknown_module_to_train_is_named(tiny_run):
    with pytest.raises(ValueError, match=r"backbone.trainable: .*'layer4'.*layers\.0"):
        train(tiny_run("backbone.trainable=[layer4]"))


def test_a_run_starts_from_another_runs_backbone(tiny_run, tmp_path):
    teacher = load_checkpoint(train(tiny_run("head.granularities=[16]")))["model"]
    cfg = tiny_run(
        f"backbone.init={tmp_path}/run", "backbone.trainable=[]", f"run_dir={tmp_path}/tuned"
    )
    tuned = load_checkpoint(train(cfg))["model"]
    for name in teacher:
        if name.startswith("backbone."):
            assert torch.equal(teacher[name], tuned[name]), name


def test_the_newest_and_the_best_checkpoints_are_kept(tiny_run, monkeypatch):
    top1 = iter([50.0, 70.0, 60.0, 60.0, 65.0])
    monkeypatch.setattr(train_loop, "accuracy", lambda *_: {2: 1.0, 4: 1.0, 16: next(top1)})
    cfg = tiny_run("save.every=3", "save.keep=2", "save.best=true", "optim.epochs=3")
    train(cfg)  # 4 steps an epoch: saved at 3, 4, 6, 8, 9, 12
    run_dir = Path(cfg.run_dir)
    kept = sorted(path.name for path in run_dir.glob("*.pt"))
    assert kept == ["best.pt", "checkpoint-00000009.pt", "checkpoint-00000012.pt", "checkpoint.pt"]
    assert load_checkpoint(run_dir / "best.pt")["step"] == 8
    assert load_checkpoint(run_dir / "checkpoint-00000009.pt")["step"] == 9
    # A run that was killed between saving and naming the best names it when it goes on.
    (run_dir / "best.pt").unlink()
    saved = load_checkpoint(run_dir / "checkpoint-00000009.pt")
    saved["best"] = {"top1": 70.0, "step": 9}
    torch.save(saved, run_dir / "checkpoint.pt")
    train(dataclasses.replace(cfg, resume=True))
    assert load_checkpoint(run_dir / "best.pt")["step"] == 9
    # A continued run knows what was best so far.
    longer = dataclasses.replace(
        cfg, resume=True, force=True, optim=dataclasses.replace(cfg.optim, epochs=4)
    )
    train(longer)
    assert load_checkpoint(run_dir)["step"] == 16
    assert load_checkpoint(run_dir / "best.pt")["step"] == 9


def test_another_config_goes_on_only_by_force(tiny_run):
    train(tiny_run("optim.epochs=1"))
    with pytest.raises(ConfigError, match="optim.epochs: 1 -> 2.*force=true"):
        train(tiny_run("resume=true"))
    assert load_checkpoint(train(tiny_run("resume=true", "force=true")))["step"] == 8


def test_a_forced_config_of_another_network_is_refused(tiny_run):
    train(tiny_run("optim.epochs=1"))
    with pytest.raises(RuntimeError, match="does not fit this config"):
        train(tiny_run("resume=true", "force=true", "backbone.widths=[8,32]"))


def test_mixing_depends_on_seed_step_and_rank_alone(compose_train):
    cfg = compose_train("optim.mixup=0.8", "optim.cutmix=1.0").optim
    images, labels = torch.rand(8, 3, 6, 6), torch.arange(8)

    def mixed(seed, step, rank):
        mix = build_mix(cfg, num_classes=10, seed=seed, rank=rank)
        np.random.rand()  # the global generator's state must not matter
        return mix(images.clone(), labels, step)

    mixed_images, soft = mixed(1, 2, 3)
    assert soft.shape == (8, 10)
    assert torch.allclose(soft.sum(1), torch.ones(8))
    assert torch.equal(mixed_images, mixed(1, 2, 3)[0])
    for other in [(0, 2, 3), (1, 0, 3), (1, 2, 0)]:
        assert not torch.equal(mixed_images, mixed(*other)[0])


def test_mixing_leaves_numpys_generator_alone(compose_train):
    mix = build_mix(compose_train("optim.mixup=1").optim, num_classes=4, seed=0, rank=0)
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    mix(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), 7)
    assert np.random.rand() == expected


def test_an_odd_batch_cannot_be_mixed(compose_train):
    mix = build_mix(compose_train("optim.mixup=1").optim, num_classes=4, seed=0, rank=0)
    with pytest.raises(ValueError, match="even number of images on each rank, got 3"):
        mix(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2]), 0)


def test_synchronised_batch_norms_need_gpus(tiny_run):
    with pytest.raises(ConfigError, match="sync_bn=true works on GPUs only, not on cpu"):
        train(tiny_run("sync_bn=true"))


def test_a_compiled_run_learns_what_a_plain_one_does(tiny_run, tmp_path, monkeypatch):
    compile_with = torch.nn.Module.compile
    # Tracing and autograd as ever; generating machine code would take a minute.
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: compile_with(module, backend="aot_eager")
    )
    plain = train(tiny_run("optim.epochs=1", f"run_dir={tmp_path}/plain"))
    compiled = train(tiny_run("compile=true", "optim.epochs=1", f"run_dir={tmp_path}/compiled"))
    a, b = (load_checkpoint(path)["model"] for path in (plain, compiled))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name].float(), b[name].float(), rtol=1e-2, atol=1e-3), name

"""Values that a config can hold and hardly a run: each trains, or is refused in one line."""

import pytest
from hydra.errors import HydraException

from mrl.config import ConfigError
from mrl.config_rules import validate
from mrl.console import explained
from mrl.distributed import Ranks, pick_device
from mrl.train_loop import fit

TRAINS = """
data.image_size=2
data.pad=15
data.num_classes=2
backbone.blur_pool=true backbone.widths=[16,16]
backbone.trainable=[]
head.granularities=null
head.weights=[0,0,1]
head.sampled=2 seed=9223372036854775807
optim.accumulate=8
optim.batch_size=1
optim.clip_norm=inf
optim.clip_norm=1e-300
optim.ema=0
optim.epochs=1 optim.warmup_epochs=2
optim.momentum=0
optim.mixup=1e-300
optim.cutmix=1e9
save.keep=1000000000
seed=9223372036854775807
tracking.log_every=1000000000
device=cpu:0
"""

REFUSED = """
backbone.blocks=[0,1] | backbone.blocks must be at least 1, got 0
backbone.blocks=[1000000,1] | backbone.blocks must be at most 1000
backbone.blocks=[] | backbone.widths and backbone.blocks
backbone.drop_path=nan | backbone.drop_path must lie in [0, 1), got nan
backbone.init=" " | backbone.init must not be empty
backbone.init=/nowhere | /nowhere
backbone.name=../x backbone.widths=null backbone.blocks=null | no backbone is called
backbone.trainable=[""] | backbone.trainable
backbone.widths=[-8,16] | backbone.widths must be at least 1, got -8
backbone.widths=[1000000000,16] | backbone.widths must lie in 8..16384
backbone.widths=[] | backbone.widths and backbone.blocks
data.holdout=48 | data.holdout=48
data.image_size=-1 | data.image_size must be at least 1
data.image_size=1 | cannot encode 3 x 1 x 1 images
data.image_size=100000 | data.image_size must be at most 8192, got 100000
data.image_size=8192 data.num_images=10000 | GiB
data.num_classes=-1 | got -1 classes
data.num_classes=0 | got 0 classes
data.num_classes=1000000000 | data.num_images >= data.num_classes
data.num_images=0 | got 10 classes and 0 images
data.num_images=1000000000 | GiB of memory
data.pad=100000 | data.pad=100000
data.pad=16 | data.pad=16 could shift images of data.image_size=16 out of sight
data.root="" | data.root must not be empty
data.train_sizes=[-1,2] | data.train_sizes must be at least 1
data.workers=100000 | data.workers must be at most 1024
device="" | device must not be empty
device=0 | device=0
device=cpu:-1 | device=cpu:-1
device=cuda:-1 | device=cuda:-1
device=gpu | choose auto, cpu, cuda
device=hpu | device=hpu cannot be used here: choose auto
device=meta | device=meta cannot be used here: choose auto
device=privateuseone | device=privateuseone
device=vulkan | device=vulkan
device=xla | device=xla
head.granularities=[0] | head.granularities
head.granularities=[] | head.granularities
head.granularities=[1000000000] | exceeds the embedding width 16
head.granularities=null head.smallest=-1 | smallest
head.granularities=null head.spacing=uniform head.count=-3 | count=-3
head.kind=other | head.kind
head.sampled=-1 | got -1
head.weights=[-1,1,1] | head.weights must be at least 0, got -1
head.weights=[0,0,0] | all loss weights are zero
head.weights=[1e300,1,1] | head.weights must be at most
head.weights=[] | 0 loss weights
head.weights=[inf,1,1] | head.weights must be at most
head.weights=[nan,1,1] | head.weights must be at least 0, got nan
name="" | name must not be empty
optim.accumulate=9 | optim.accumulate=9 parts cannot be made of optim.batch_size=8
optim.base_lr=-inf | optim.base_lr must be positive
optim.base_lr=1e300 | optim.base_lr must be positive
optim.base_lr=1e9 | not finite
optim.batch_size=1000000000 | a batch of 1000000000 is larger
optim.betas=[2,3] | optim.betas[0] must lie in [0, 1), got 2
optim.betas=[] | optim.betas must be two numbers
optim.clip_norm=nan | optim.clip_norm must be positive
optim.cutmix=inf | optim.cutmix must be at most
optim.ema=nan | optim.ema must lie in
optim.epochs=10.5 | optim.epochs
optim.epochs=1e30 | optim.epochs
optim.epochs=1000000000000000000000 | optim.epochs must be at most
optim.epochs=20 optim.warmup_epochs=20 | optim.warmup_epochs must lie in
optim.label_smoothing=-0.1 | optim.label_smoothing must lie in
optim.mixup=nan | optim.mixup must be at least 0
optim.momentum=-1 | optim.momentum must lie in
optim.warmup_epochs=inf | optim.warmup_epochs must lie in
optim.weight_decay=1e300 | optim.weight_decay must be at most
optim.weight_decay=nan | optim.weight_decay must be at least 0
run_dir="" | run_dir must not be empty
run_dir=/dev/null/x | cannot write to run_dir
save.every=0 | save.every must be at least 1
save.keep=0 | save.keep must be at least 1
seed=-1 | seed must be at least 0
seed=18446744073709551616 | seed must be at most 9223372036854775807
seed=9223372036854775808 | seed must be at most 9223372036854775807
sync_bn=true device=cpu | sync_bn=true works on GPUs only
tracking.log_every=0 | tracking.log_every must be at least 1
"""


def line_of(tiny_run, words):
    """What a run of these overrides is refused with; None if it trains to its end."""
    try:
        cfg = tiny_run("optim.epochs=1", "device=cpu", *words)
        validate(cfg)
        fit(cfg, Ranks(), pick_device(cfg.device))
    except HydraException as error:
        return f"error: {error}".splitlines()[0]  # a value of another type
    except Exception as error:
        line = explained(error)
        if line is None:
            raise
        return line
    return None


@pytest.mark.parametrize("line", TRAINS.strip().splitlines())
def test_trains(tiny_run, line):
    assert line_of(tiny_run, line.split()) is None


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_is_refused_in_one_line(tiny_run, line):
    words, _, message = line.partition(" | ")
    said = line_of(tiny_run, words.replace('" "', "'\t'").split(" "))
    assert said is not None
    assert said.startswith("error: ") and "\n" not in said
    assert message in said


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_a_device_that_is_not_there_is_said_to_be_missing(monkeypatch, kind):
    from mrl import distributed

    monkeypatch.setitem(distributed.DEVICES, kind, lambda: False)
    with pytest.raises(ValueError, match=rf"device={kind}:1 cannot be used here: this machine has"):
        pick_device(f"{kind}:1")


@pytest.mark.parametrize(("name", "rank"), [("cuda:4", 0), ("cuda", 4), ("auto", 7)])
def test_more_processes_than_gpus_are_refused(monkeypatch, name, rank):
    import torch

    from mrl import distributed

    monkeypatch.setitem(distributed.DEVICES, "cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"and there are 4, counted from 0"):
        pick_device(name, rank)


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_every_fault_is_a_config_error_before_any_work(compose_train, value):
    with pytest.raises(ConfigError, match=r"optim\.base_lr"):
        validate(compose_train(f"optim.base_lr={value}"))

"""Every experiment file takes two steps, on synthetic images of its own size and channels."""

from pathlib import Path

import pytest
import torch

from mrl.checkpoint import load_model
from mrl.distributed import Ranks
from mrl.train_loop import fit

CONFIGS = Path(__file__).parent.parent / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps(compose_train, tmp_path, name):
    cfg = compose_train(
        f"experiment={name}",
        "data=synthetic",
        "data.num_images=10",
        "data.holdout=2",
        "data.image_size=32",
        "optim.epochs=2",
        "optim.batch_size=8",
        "optim.precision=fp32",
        "optim.warmup_epochs=1",
        # What needs a download, a checkpoint, or images in files:
        "backbone.pretrained=false",
        "backbone.init=null",
        "data.train_sizes=null",
        "data.ramp_epochs=null",
        "data.rand_augment=null",
        f"run_dir={tmp_path}/run",
    )
    model = load_model(fit(cfg, Ranks(), torch.device("cpu")))
    logits = model(torch.zeros(1, 3, 32, 32))
    assert list(logits) == model.granularities
    assert model.granularities[-1] == model.embed_dim

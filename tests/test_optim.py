import itertools

import pytest
import timm
import torch
from torch import nn

from mrl.optim import build_optimizer, learning_rate, param_groups, peak_lr


def test_norms_and_biases_do_not_decay_whatever_they_are_called():
    model = timm.create_model("resnet18", num_classes=3)
    decayed, exempt = (group["params"] for group in param_groups(model, 0.1))
    expected = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {id(p) for p in decayed} == expected
    assert id(model.layer2[0].downsample[1].weight) in {id(p) for p in exempt}
    assert len(decayed) + len(exempt) == len(list(model.parameters()))


def test_layer_norms_of_a_transformer_do_not_decay():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    decayed = {id(p) for p in param_groups(model, 0.1)[0]["params"]}
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert id(module.weight) not in decayed


def test_optimizers_follow_the_config(compose_train):
    model = nn.Linear(2, 2)
    sgd = build_optimizer(model, compose_train().optim)
    assert isinstance(sgd, torch.optim.SGD)
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in sgd.param_groups)
    adamw = build_optimizer(model, compose_train("optim=adamw").optim)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.05, 0.0]


def test_the_papers_learning_rate():
    assert peak_lr(0.10625, 1024) == pytest.approx(0.425)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_then_schedule(schedule):
    rates = [
        learning_rate(s, total_steps=100, warmup_steps=10, peak=2.0, schedule=schedule)
        for s in range(100)
    ]
    assert 0 < rates[0] < rates[5] < rates[9] < rates[10] == 2.0
    if schedule == "constant":
        assert set(rates[10:]) == {2.0}
    else:
        assert all(a > b > 0 for a, b in itertools.pairwise(rates[10:]))
        assert rates[55] == pytest.approx(1.0)  # half-way down
        assert rates[99] < 0.05


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'step'"):
        learning_rate(9, total_steps=10, warmup_steps=0, peak=1.0, schedule="step")

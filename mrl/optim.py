"""Optimizers, and learning rates as pure functions of the step."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mrl.config import OptimConfig

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: parameters that decay, and those that do not (norms', biases, other vectors).

    A norm is known by its module's type: going by the name misses the ones inside ``downsample``.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            spared = isinstance(module, _NORMS) or name == "bias" or parameter.ndim < 2
            (exempt if spared else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def freeze(model: nn.Module, trainable: Sequence[str]) -> None:
    """Train only the parameters of the modules named, such as "layer4.2" (paper, table 26).

    Raises:
        ValueError: for a name that is no module or parameter of ``model``.
    """
    known = [name for name, _ in model.named_parameters()]
    for wanted in trainable:
        if not any(_within(name, wanted) for name in known):
            parts = dict.fromkeys(".".join(name.split(".")[:2]) for name in known)
            raise ValueError(
                f"backbone.trainable: there is no parameter in {wanted!r}; the backbone has "
                f"{', '.join(parts)}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(_within(name, wanted) for wanted in trainable))


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def train_mode(model: nn.Module) -> None:
    """Training mode, but for frozen modules: a frozen batch norm keeps its statistics, too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def build_optimizer(model: nn.Module, cfg: "OptimConfig") -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW; the loop sets the rate of every step."""
    groups = param_groups(model, cfg.weight_decay)
    if cfg.name.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(cfg.betas[0], cfg.betas[1]), fused=True)
    # Not fused: PyTorch 2.14's fused SGD fails once a parameter got its first gradient later than
    # others, as the classifiers of granularities that are sampled do.
    nesterov = cfg.nesterov and cfg.momentum > 0
    return torch.optim.SGD(groups, lr=0.0, momentum=cfg.momentum, nesterov=nesterov)


def peak_lr(base_lr: float, batch_size: int) -> float:
    """Linear scaling: ``base_lr`` is the rate for 256 images per step (over all ranks)."""
    return base_lr * batch_size / 256


def fitting_warmup(warmup_epochs: float, epochs: int) -> float:
    """The warm-up in epochs: as asked for, or a third of a run that would end before it does.

    So a recipe can be tried for an epoch or two without changing its other values.
    """
    return warmup_epochs if warmup_epochs < epochs else epochs / 3


def learning_rate(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, schedule: str
) -> float:
    """Rate at ``step`` in 0..total_steps-1: linear warm-up to ``peak``, then the schedule.

    "linear" (paper, appendix C) and "cosine" fall to 0 at ``total_steps``; "constant" stays.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    raise ValueError(f"unknown schedule {schedule!r}: choose linear, cosine or constant")

"""Weights, gradients and optimizer state sharded over ranks by PyTorch's FSDP, for large ViTs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from mrl.model import MRLModel

if TYPE_CHECKING:
    from mrl.config import TrainConfig
    from mrl.distributed import Ranks


def shard(model: MRLModel, cfg: TrainConfig, ranks: Ranks, device: torch.device) -> None:
    """Shard ``model`` in place, block by block; to be called before its optimizer is made.

    Raises:
        ValueError: for one rank, and for what cannot be sharded.
    """
    if ranks.world_size == 1:
        raise ValueError("fsdp=true shards a model over ranks, and there is one: use torchrun")
    if cfg.optim.ema is not None or cfg.optim.precision.name == "fp16":
        raise ValueError("fsdp=true goes with neither optim.ema nor optim.precision=fp16")
    if any(isinstance(m, nn.modules.batchnorm._NormBase) for m in model.modules()):
        raise ValueError(
            f"fsdp=true is for models without batch norms, unlike {cfg.backbone.name}, whose "
            "running statistics would differ between ranks"
        )
    model.to(memory_format=torch.contiguous_format)  # FSDP takes no other
    mesh = init_device_mesh(device.type, (ranks.world_size,))
    for name in ("blocks", "stages"):  # timm's names of what a network repeats
        for block in getattr(model.backbone, name, ()):
            fully_shard(block, mesh=mesh)
    fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # FSDP gathers a module's weights when its forward() is called; the loop calls these as well.
    register_fsdp_forward_method(model.head, "loss")
    register_fsdp_forward_method(model, "encode")


def full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(model's, optimizer's) whole state on the CPU of rank 0; all ranks must call this."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(model, optimizer, options=options)


def load_full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]
) -> None:
    """Each rank takes its part of what :func:`full_state` gave."""
    set_state_dict(
        model,
        optimizer,
        model_state_dict=saved["model"],
        optim_state_dict=saved["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )

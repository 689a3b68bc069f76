"""What a run changes from step to step, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mrl.checkpoint import CheckpointError
from mrl.distributed import all_reduce_sum
from mrl.model import MRLModel
from mrl.optim import build_optimizer
from mrl.sharding import full_state, load_full_state

if TYPE_CHECKING:
    from mrl.config import OptimConfig


class TrainState:
    """Model, optimizer, the loss scale of fp16, and the running average of the weights."""

    def __init__(
        self,
        model: MRLModel,
        cfg: OptimConfig,
        precision: str,
        device: torch.device,
        *,
        sharded: bool = False,
    ) -> None:
        self.model = model
        self.sharded = sharded
        self.clip_norm = cfg.clip_norm
        self.optimizer = build_optimizer(model, cfg)
        # Only fp16 needs it: bf16 has float32's range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.decay = cfg.ema
        self.average = None if cfg.ema is None else AveragedModel(model, use_buffers=True)

    @property
    def evaluated(self) -> MRLModel:
        """The averaged weights if there are any, else the model."""
        return self.model if self.average is None else cast(MRLModel, self.average.module)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of one part of a batch."""
        self.scaler.scale(loss).backward()

    def update(self, lr: float) -> None:
        """One step of the optimizer with the gradients added up since the last."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average()

    def _update_average(self) -> None:
        if self.average is None or self.decay is None:
            return
        decay = warmed_up(self.decay, int(self.average.n_averaged))  # counted on the CPU: no wait
        self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.average.update_parameters(self.model)

    def is_finite(self) -> bool:
        """Whether all that is saved is, on all ranks; a GPU is waited for once."""
        modules = [self.model] if self.average is None else [self.model, self.average.module]
        kept = [t for m in modules for t in chain(m.parameters(), m.buffers())]
        kept += [t for of in self.optimizer.state.values() for t in of.values() if _is_float(t)]
        local = [t.to_local() if isinstance(t, DTensor) else t for t in kept if _is_float(t)]
        device = next(self.model.parameters()).device  # AdamW counts its steps on the CPU
        unusable = torch.stack([(~torch.isfinite(t)).any().to(device) for t in local]).sum()
        return not all_reduce_sum(unusable).item()

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint; all ranks must call this, and rank 0 gets the whole."""
        if self.sharded:
            model, optimizer = full_state(self.model, self.optimizer)
            return {"model": model, "optimizer": optimizer}
        saved: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.scaler.is_enabled():
            saved["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            saved["average"] = self.average.module.state_dict()
            saved["num_averaged"] = self.average.n_averaged
        return saved

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what :meth:`to_dict` gave.

        Raises:
            CheckpointError: if it is of another model or optimizer (a resumed run with force=true).
        """
        try:
            if self.sharded:
                load_full_state(self.model, self.optimizer, saved)
                return
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.scaler.is_enabled() and "scaler" in saved:
                self.scaler.load_state_dict(saved["scaler"])
            if self.average is not None and "average" in saved:
                self.average.module.load_state_dict(saved["average"])
                self.average.n_averaged.copy_(saved["num_averaged"])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not fit this config: {error}") from error
        except (AttributeError, IndexError, KeyError, TypeError) as error:  # of another kind
            raise CheckpointError(f"the checkpoint's state is unusable: {error!r}") from error


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def warmed_up(decay: float, num_averaged: int) -> float:
    """Decay of the running average after so many updates: (1 + n) / (10 + n), up to ``decay``.

    It starts low, as in TensorFlow's moving averages: 0.9999 from the first step on would keep 0.95
    of the initial weights after 500 steps.
    """
    return min(decay, (1 + num_averaged) / (10 + num_averaged))

"""The losses between two lines of the log, and the end of a run whose loss is not finite.

Shapes: G granularities.
"""

import time
from pathlib import Path

import torch
from torch import Tensor

from mrl.distributed import all_reduce_sum
from mrl.tracking import per_granularity


class NonFiniteError(RuntimeError):
    """Training diverged; the message says at which step and what is left."""


class RunningLoss:
    """The losses since the log's last line; they stay on the device, so that no step waits."""

    def __init__(self, granularities: list[int], device: torch.device, world_size: int) -> None:
        self.granularities = granularities
        self.world_size = world_size
        self.totals: list[Tensor] = []
        self.sum_G = torch.zeros(len(granularities), device=device)
        self.start = time.perf_counter()

    def add(self, total: Tensor, losses_G: Tensor) -> None:
        self.totals.append(total)
        self.sum_G += losses_G

    def close(self, done: int, checkpoint: Path) -> dict[str, float]:
        """Means over the window's steps and over ranks; refuses a loss that is not finite."""
        count = len(self.totals)
        sums = torch.cat([torch.stack(self.totals), self.sum_G])
        means = (all_reduce_sum(sums) / self.world_size).tolist()  # over ranks
        totals, sum_G = means[:count], means[count:]
        for i, total in enumerate(totals):
            if not abs(total) < float("inf"):
                raise NonFiniteError(diverged(f"the loss ({total})", done - count + i, checkpoint))
        losses = {m: s / count for m, s in zip(self.granularities, sum_G, strict=True)}
        seconds = time.perf_counter() - self.start
        self.totals, self.start = [], time.perf_counter()
        self.sum_G = torch.zeros_like(self.sum_G)
        return {
            "train/total": sum(totals) / count,
            "steps_per_s": count / seconds,
            **per_granularity("train/loss", losses),
        }


def diverged(what: str, step: int, checkpoint: Path) -> str:
    left = f"{checkpoint} holds the last good state" if checkpoint.exists() else "nothing was saved"
    return (
        f"{what} is not finite at step {step}: training stopped, {left}. "
        "Try a lower optim.base_lr, a longer optim.warmup_epochs, or optim.clip_norm"
    )

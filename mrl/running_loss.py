"""Losses and speed between two lines of the log, and the end of a run whose loss is not finite.

Shapes: G granularities.
"""

import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from mrl.distributed import all_reduce_sum
from mrl.tracking import per_granularity

Batch = tuple[Tensor, Tensor]


class NonFiniteError(RuntimeError):
    """Training diverged; the message says at which step and what is left."""


class RunningLoss:
    """The losses since the log's last line; they stay on the device, so that no step waits.

    Args:
        batch_size: images of a step, over all ranks.
    """

    def __init__(
        self, granularities: list[int], device: torch.device, world_size: int, batch_size: int
    ) -> None:
        self.granularities = granularities
        self.batch_size = batch_size
        self.world_size = world_size
        self.totals: list[Tensor] = []
        self.sum_G = torch.zeros(len(granularities), device=device)
        self.start = time.perf_counter()
        self.waited = 0.0  # seconds, for the loader

    def fetched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, timing the wait for each."""
        iterator = iter(batches)
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - start
            yield batch

    def add(self, total: Tensor, losses_G: Tensor) -> None:
        """The loss of one step, and its part at every granularity."""
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
        speed = {
            "speed/images_per_s": count * self.batch_size / seconds,
            "speed/step_ms": 1000 * seconds / count,
            "speed/data_wait": self.waited / seconds,  # share of the time
            "speed/memory_mib": peak_memory_mib(self.sum_G.device),
        }
        self.totals, self.waited, self.start = [], 0.0, time.perf_counter()
        self.sum_G = torch.zeros_like(self.sum_G)
        return {
            "train/total": sum(totals) / count,
            **per_granularity("train/loss", losses),
            **speed,
        }


def peak_memory_mib(device: torch.device) -> float:
    """The most that this process has held: on the GPU if it trains there, else in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB


def diverged(what: str, step: int, checkpoint: Path) -> str:
    left = f"{checkpoint} holds the last good state" if checkpoint.exists() else "nothing was saved"
    return (
        f"{what} is not finite at step {step}: training stopped, {left}. "
        "Try a lower optim.base_lr, a longer optim.warmup_epochs, or optim.clip_norm"
    )

"""Processes that train together, under ``torchrun`` or as tasks of a job that submitit started.

One process alone needs no set-up.
"""

import gc
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # for an answer of another rank


class RankLostError(ConnectionError):
    """Another rank is gone, or does not answer within TIMEOUT."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


# What training and evaluation run on, and how PyTorch says whether this machine has it. It names a
# dozen others, of which some hold no numbers ("meta") and most raise what nobody can act on.
DEVICES: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "xpu": torch.xpu.is_available,
}


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called ``name``; "auto" is this rank's GPU if there is one, else the CPU.

    Raises:
        ValueError: for a device that this machine or PyTorch does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise ValueError(
            f"device={name} cannot be used here: choose auto, {', '.join(DEVICES)}, or one of "
            "several GPUs, such as cuda:1"
        )
    if not DEVICES[kind]():
        raise ValueError(
            f"device={name} cannot be used here: this machine has none, or this PyTorch "
            f"({torch.__version__}) was built without it. device=auto takes what there is"
        )
    device = torch.device("cuda", local_rank) if name == "cuda" else _device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name} cannot be used here: process {local_rank} would take GPU "
            f"{device.index}, and there are {torch.cuda.device_count()}, counted from 0"
        )
    if name == "cuda":
        torch.cuda.set_device(device)
    return device


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device={name} cannot be used here: {str(error).splitlines()[0]}"
        ) from None


@contextmanager
def process_group(device_name: str) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that torchrun or submitit started: nccl on GPUs, gloo on CPUs.

    Raises:
        RankLostError: in place of what the library says when another rank is gone.
    """
    if "SUBMITIT_EXECUTOR" in os.environ and "WORLD_SIZE" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    ranks = Ranks(int(os.environ.get("RANK", 0)), world_size, int(os.environ.get("LOCAL_RANK", 0)))
    device = pick_device(device_name, ranks.local_rank)
    if world_size == 1:
        yield ranks, device
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield ranks, device
        # gloo's threads sometimes abort a process that exits while peers still talk to it; collect
        # what holds them (DDP's reducer), and leave together.
        gc.collect()
        dist.barrier()
    except RuntimeError as error:
        if not _is_of_other_ranks(error):
            raise
        raise RankLostError(
            f"another rank is gone, or does not answer ({_reason(error)}): what it wrote says why. "
            "The same command goes on from what is saved (train.py: with resume=true)"
        ) from error
    finally:
        dist.destroy_process_group()


def _is_of_other_ranks(error: RuntimeError) -> bool:
    """nccl's have a type of their own; gloo's begin with the line of its source."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _reason(error: RuntimeError) -> str:
    line = str(error).partition("\n")[0]
    return re.sub(r"^\[\S*\] ", "", line).partition(". ")[0]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over ranks, in place; nothing to do for one process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def from_rank_0(make: Callable[[], T], ranks: Ranks) -> T:
    """What rank 0 makes, on every rank."""
    return cast(T, gather_objects(make() if ranks.is_main else None)[0])


def gather_objects(value: object) -> list[object]:
    """``value`` of every rank, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    gathered: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered

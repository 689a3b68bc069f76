"""Cases that take turns, so that a busy machine slows all, and the ratios of their times."""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.machine import synchronize

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Step = Callable[[], object]


def timed(
    steps: dict[str, Step], args: argparse.Namespace, device: torch.device
) -> dict[str, Callable[[], float]]:
    """Each step as a turn: several in a row where they queue on a GPU; seconds of one."""
    count = 10 if device.type == "cuda" else 1
    clock = CLOCKS[args.clock]

    def turn(step: Step) -> float:
        synchronize(device)
        start = clock()
        for _ in range(count):
            step()
        synchronize(device)
        return (clock() - start) / count

    return {name: lambda step=step: turn(step) for name, step in steps.items()}


def take_turns(
    cases: dict[str, Callable[[], float]], rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds of each case in each round but the first ``warmup``."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = cases[name]()
            if number >= warmup:
                seconds[name].append(value)
    return seconds


def ratios(values: list[float], base: list[float]) -> str:
    """``median (from, to)`` of values / base in the same round; in brackets the middle half."""
    low, median, high = middle([a / b for a, b in zip(values, base, strict=True)])
    return f"{median:.3f} ({low:.3f}, {high:.3f})"


def overhead(values: list[float], base: list[float]) -> str:
    low, median, high = middle([a / b - 1 for a, b in zip(values, base, strict=True)])
    return f"{100 * median:+.1f} % ({100 * low:+.1f}, {100 * high:+.1f})"


def middle(values: list[float]) -> tuple[float, float, float]:
    """The ends of the middle half and, between them, the median."""
    ordered, quarter = sorted(values), len(values) // 4
    return ordered[quarter], statistics.median(values), ordered[-1 - quarter]

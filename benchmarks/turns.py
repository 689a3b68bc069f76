"""Cases that take turns, so that a busy machine slows all, and the ratios of their times."""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from benchmarks.machine import synchronize

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Step = Callable[[], object]
T = TypeVar("T")


def take_turns(
    cases: dict[str, Callable[[], T]], rounds: int, warmup: int = 1
) -> dict[str, list[T]]:
    """What each case gave in each round but the first ``warmup``."""
    given: dict[str, list[T]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = cases[name]()
            if number >= warmup:
                given[name].append(value)
    return given


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds that pass, and what it gave."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def seconds_of_steps(
    steps: dict[str, Step], clock: str, device: torch.device
) -> dict[str, Callable[[], float]]:
    """Each step as a case: several in a row where they queue on a GPU; seconds of one."""
    count = 10 if device.type == "cuda" else 1
    now = CLOCKS[clock]

    def seconds(step: Step) -> float:
        synchronize(device)
        start = now()
        for _ in range(count):
            step()
        synchronize(device)
        return (now() - start) / count

    return {name: lambda step=step: seconds(step) for name, step in steps.items()}


def median_ratio(values: list[float], base: list[float]) -> float:
    """Of values / base in the same round."""
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


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

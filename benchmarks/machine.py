"""What the machine can do at most, and what a process takes, for the other benchmarks."""

import re
import statistics
import time
from pathlib import Path

import torch


def matrix_peak(dtype: torch.dtype, device: torch.device, size: int = 4096) -> float:
    """FLOP/s of a square matrix product, the median of five."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[1:])


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resident_bytes(field: str) -> int:
    """Of this process on Linux: "VmRSS" now, "VmHWM" at most since :func:`forget_peak`."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")

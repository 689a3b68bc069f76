"""Which number format the arithmetic runs in."""

from pathlib import Path

import torch


def pick_precision(name: str, device: torch.device) -> str:
    """ "fp32", "bf16" or "fp16"; "auto" is bf16 exactly where the hardware multiplies in it.

    Elsewhere bf16 is emulated: on a CPU without such instructions convolutions were measured 20
    times slower than in float32.
    """
    if name != "auto":
        return name
    return "bf16" if has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and _cpu_multiplies_bf16()


def _cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """By the flags that Linux lists: x86's AMX and AVX-512 BF16, Arm's BF16; elsewhere no."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags.split())


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context in which a forward pass runs; float32 weights stay float32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")

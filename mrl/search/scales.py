"""Rows brought into float32's range by powers of two, which change neither directions nor order.

Shapes: N rows, C columns.
"""

import torch
from torch import Tensor

# What rows are multiplied by: 1.0 leaves them as they are; None stands for a power of two of each
# row's own, after which its largest entry lies in [0.5, 1) (cosine does not see it).
Scale = float | None

_LARGEST_POWER = 2.0**1023  # of float64; the smallest rows, times it, are still far above 0


def in_float32(x_NC: Tensor, scale: Scale, device: torch.device) -> Tensor:
    """Rows of any floating-point type, scaled, in float32."""
    if scale == 1.0:
        return x_NC.to(device, torch.float32)
    return scaled(x_NC.to(device, torch.float64), scale).float()


def scaled(x_NC: Tensor, scale: Scale) -> Tensor:
    """Float64 rows times ``scale``."""
    return x_NC * (power_of_two(x_NC.abs().amax(1, keepdim=True)) if scale is None else scale)


def power_of_two(largest: Tensor) -> Tensor:
    """What brings float64 numbers above 0 into [0.5, 1); 1 for zeros."""
    mantissa, _ = torch.frexp(largest)  # of largest = mantissa * 2**exponent: the division is exact
    return torch.where(largest == 0, 1.0, mantissa / largest).clamp(max=_LARGEST_POWER)

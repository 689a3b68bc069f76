"""Granularities, and the prefixes they name.

Shapes: N examples, D embedding width, M prefix width.  A *granularity* m is the length of a prefix
z[..., :m] of an embedding; a model is trained at a strictly increasing list of them.
"""

import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor


def log_spaced(embed_dim: int, smallest: int = 8) -> list[int]:
    """Halvings of ``embed_dim`` down to ``smallest`` (paper, section 3: M = {8, 16, ..., 2048}).

    A width whose halving is odd stops there: 768 -> [12, 24, 48, 96, 192, 384, 768] with the
    default, because 6 is below ``smallest``.

    Raises:
        ValueError: if ``smallest`` is below 1 or above ``embed_dim``.
    """
    if not 1 <= smallest <= embed_dim:
        raise ValueError(
            f"the smallest granularity must lie in 1..{embed_dim} (the embedding width), "
            f"got {smallest}"
        )
    widths = [embed_dim]
    while widths[0] % 2 == 0 and widths[0] // 2 >= smallest:
        widths.insert(0, widths[0] // 2)
    return widths


def uniform(embed_dim: int, count: int, smallest: int = 8) -> list[int]:
    """``count`` evenly spaced widths from ``smallest`` to ``embed_dim`` (paper, Table 29).

    ``uniform(2048, 11)`` -> [8, 212, 416, ..., 1844, 2048].

    Raises:
        ValueError: if fewer than two widths are asked for, or they do not fit between the ends.
    """
    if count < 2:
        raise ValueError(f"uniform spacing needs at least 2 granularities, got count={count}")
    if not 1 <= smallest <= embed_dim - count + 1:
        raise ValueError(
            f"{count} different widths do not fit between {smallest} and the embedding width "
            f"{embed_dim}"
        )
    step = (embed_dim - smallest) / (count - 1)
    return [round(smallest + i * step) for i in range(count)]


def check_granularities(granularities: Sequence[int], embed_dim: int) -> list[int]:
    """The granularities as a list, if they are integers, positive, strictly increasing and fit.

    Raises:
        ValueError: with the offending numbers.
    """
    widths = list(granularities)
    if not widths:
        raise ValueError("granularities are empty: name at least one prefix width")
    for m in widths:
        if isinstance(m, bool) or not isinstance(m, Integral):
            raise ValueError(f"granularities must be integers, got {m!r} in {widths}")
    widths = [int(m) for m in widths]
    if widths[0] < 1 or any(a >= b for a, b in itertools.pairwise(widths)):
        raise ValueError(f"granularities must be positive and strictly increasing, got {widths}")
    if widths[-1] > embed_dim:
        raise ValueError(f"granularity {widths[-1]} exceeds the embedding width {embed_dim}")
    return widths


def prefix(z: Tensor, m: int) -> Tensor:
    """The first ``m`` entries of the last axis of ``z`` (..., D), as a view (..., m).

    Raises:
        ValueError: if ``m`` is below 1 or above D; a bare slice would silently return D entries.
    """
    if not 1 <= m <= z.shape[-1]:
        raise ValueError(
            f"prefix width must lie in 1..{z.shape[-1]} (the embedding width), got {m}"
        )
    return z[..., :m]


def truncate(z: Tensor, m: int, normalize: bool = True) -> Tensor:
    """Cut ``z`` (..., D) to its first ``m`` entries, THEN L2-normalise them (paper, section 4.3).

    The order matters: a unit vector's prefix is shorter than 1 by an amount that differs from one
    example to the next, so cutting after normalising ranks neighbours wrongly.
    """
    z = prefix(z, m)
    return unit(z) if normalize else z


def unit(z: Tensor) -> Tensor:
    """The rows of ``z`` (..., M) divided by their L2 norms; rows of zeros stay zeros.

    This holds at any scale: rows whose squares or norms leave the range of the dtype are divided by
    their largest entry first.  The gradients of such rows stay finite, and a row of zeros, which
    has no direction, hands on the gradient it gets.
    """
    least, most = _safe_norms(z.dtype)
    norm = z.norm(dim=-1, keepdim=True)
    if _all_between(least, most, norm):
        return z / norm
    largest = z.detach().abs().amax(-1, keepdim=True)
    as_it_is = (largest == 0) | ((norm >= least) & (norm <= most))
    divisor = torch.where(as_it_is, 1.0, largest)
    z = _Divided.apply(z, divisor) if z.requires_grad else z / divisor
    norm = z.norm(dim=-1, keepdim=True)
    return z / torch.where(norm == 0, 1.0, norm)


def _safe_norms(dtype: torch.dtype) -> tuple[float, float]:
    """Between which bounds neither a norm nor the sum of squares that it comes from is lost."""
    info = torch.finfo(dtype)
    if dtype == torch.float16:  # its squares are summed in float32
        return info.tiny, info.max
    return info.max**-0.4, info.max**0.4


def _all_between(least: float, most: float, x: Tensor) -> bool:
    """Whether this is known at once: not on a GPU, which would have to be waited for."""
    if not x.is_cpu or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:
        smallest, largest = x.detach().aminmax()
        return least <= smallest.item() and largest.item() <= most
    except RuntimeError:  # no values are to be seen under torch.func.vmap
        return False


class _Divided(torch.autograd.Function):
    """Rows (..., M) divided by constants (..., 1), with a gradient that does not overflow.

    Where the constant is not 1 it is cut, to less than the dtype holds: as much again may be added
    for each of several granularities.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, divisor: Tensor) -> Tensor:
        return z / divisor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (divisor,) = ctx.saved_tensors
        most = torch.finfo(grad.dtype).max / 16
        return torch.where(divisor == 1, grad, (grad / divisor).clamp(-most, most)), None


def check_weights(weights: Sequence[float] | None, granularities: Sequence[int]) -> list[float]:
    """The loss weights c_m, one for each granularity; ``None`` gives the paper's c_m = 1.

    Raises:
        ValueError: if there are more or fewer than granularities, or one is negative or not finite.
    """
    if weights is None:
        return [1.0] * len(granularities)
    if len(weights) != len(granularities):
        raise ValueError(
            f"{len(weights)} loss weights {list(weights)} for {len(granularities)} granularities "
            f"{list(granularities)}: give one each"
        )
    if not all(0.0 <= w < float("inf") for w in weights):
        raise ValueError(f"loss weights must be finite and not negative, got {list(weights)}")
    return [float(w) for w in weights]


def sample_weights(weights: Sequence[float], count: int, *, seed: int, step: int) -> list[float]:
    """Loss weights for one step at which only ``count`` of the G granularities are trained.

    The full width (the last) is always in; ``count - 1`` of the others are drawn without
    replacement and the rest get weight 0.  Drawn ones are scaled by (G-1) / (count-1), so that the
    expected loss is the full weighted sum.  The draw depends on ``seed`` and ``step`` only, hence
    is the same on every rank: otherwise DDP's all-reduce would mix different losses.

    Raises:
        ValueError: unless 1 <= count <= G.  With count 1 only the full width is ever trained, so
            that is refused when there are others.
    """
    num_others = len(weights) - 1
    if not (1 if num_others == 0 else 2) <= count <= len(weights):
        raise ValueError(
            f"the number of granularities sampled per step must lie in 2..{len(weights)}, "
            f"got {count}"
        )
    if count == len(weights):
        return list(weights)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    drawn = torch.randperm(num_others, generator=generator)[: count - 1].tolist()
    scale = num_others / (count - 1)
    sampled = [w * scale if i in drawn else 0.0 for i, w in enumerate(weights[:-1])]
    return [*sampled, weights[-1]]

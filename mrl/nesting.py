"""Granularities, and the prefixes they name.

Shapes: N examples, D embedding width, M prefix width.  A *granularity* m is the length of a prefix
z[..., :m] of an embedding; a model is trained at a strictly increasing list of them.
"""

import itertools
from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
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
    return F.normalize(z, dim=-1) if normalize else z


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

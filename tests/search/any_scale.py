"""Neighbours of rows at any scale, pair by pair, in sums that neither over- nor underflow."""

import math
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

EXPONENTS = {  # of two, that the dtype holds
    torch.float16: (-22, 15),
    torch.bfloat16: (-130, 127),
    torch.float32: (-145, 127),
    torch.float64: (-1070, 1022),
}


def nearness(bank: Tensor, queries: Tensor, metric: str) -> Tensor:
    """Larger is nearer, float64 (Q, B): the cosine, or the distance (no square of it), negated."""
    rows, asked = bank.double().tolist(), queries.double().tolist()
    if metric == "cosine":
        rows, asked = [*map(direction, rows)], [*map(direction, asked)]
        near = [[math.fsum(map(operator.mul, q, x)) for x in rows] for q in asked]
    else:
        near = [[-math.dist(q, x) for x in rows] for q in asked]
    return torch.tensor(near, dtype=torch.float64)


def direction(row: Sequence[float]) -> list[float]:
    """The row at length 1, brought near 1 by a power of two before; zeros stay zeros."""
    exponent = math.frexp(max(map(abs, row)))[1]
    row = [math.ldexp(value, -exponent) for value in row]
    norm = math.hypot(*row) or 1.0
    return [value / norm for value in row]


def assert_nearest(
    bank: Tensor, queries: Tensor, metric: str, scores: Tensor, indices: Tensor
) -> None:
    """That (Q, K) ``indices`` name the nearest rows, as far as float64 can tell, and of equal rows
    the first ones in order; and that ``scores`` are theirs."""
    near_QB = nearness(bank, queries, metric)
    right_QK = near_QB.sort(dim=1, descending=True, stable=True).values[:, : indices.shape[1]]
    found_QK = near_QB.gather(1, indices)
    slack_QK = torch.full_like(right_QK, 3e-15) if metric == "cosine" else 1e-13 * right_QK.abs()
    assert ((found_QK - right_QK).abs() <= slack_QK).all()
    twin_BB = (bank[:, None] == bank[None]).all(2).tril(-1)  # of row i, those before it
    for row in indices.tolist():
        assert len(set(row)) == len(row)
        for place, i in enumerate(row):
            assert set(twin_BB[i].nonzero()[:, 0].tolist()) <= set(row[:place])
    wanted_QK = found_QK if metric == "cosine" else found_QK.square()
    relative, absolute = (
        (0.0, 4e-5) if metric == "cosine" else (1e-4, torch.finfo(scores.dtype).tiny)
    )
    torch.testing.assert_close(scores, wanted_QK.to(scores.dtype), rtol=relative, atol=absolute)


def at_scales(exponent: Tensor, dtype: torch.dtype, seed: int) -> Tensor:
    """Random numbers (N, D) times two to the power of the exponents, within the dtype's range."""
    generator = torch.Generator().manual_seed(seed)
    value = 1.9 * torch.rand(exponent.shape, generator=generator, dtype=torch.float64) - 0.9
    exponent = exponent.clamp(*EXPONENTS[dtype]).long()
    half = exponent // 2  # 2.0**1070 is no float64
    return (value * 2.0 ** half.double() * 2.0 ** (exponent - half).double()).to(dtype)

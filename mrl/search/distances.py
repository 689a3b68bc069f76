"""Distances as scores that keep the order of any two, where their squares leave float64's range.

A score is the squared distance, negated.  Beyond 2**-300 and 2**300 distances count by their root
instead, in such units that the order stays; :func:`squared_distances` knows which is which.

Shapes: P pairs, C columns.
"""

import torch
from torch import Tensor

_NEAR, _FAR = 2.0**-300, 2.0**300


def beyond_squares(score: Tensor) -> Tensor:
    """Which negated sums of squares (P,) may be wrong, as some of the squares left the range."""
    return (score > -(_NEAR**2)) | ~(score >= -(_FAR**2))


def within_squares(score: Tensor) -> bool:
    """Whether none of some scores is beyond them."""
    if not score.numel():
        return True
    lowest, highest = score.aminmax()
    return bool((lowest >= -(_FAR**2)) & (highest <= -(_NEAR**2)))


def unusable(score: Tensor) -> Tensor:
    """Which scores of any type are NaN, or negated sums of squares too large to be scores."""
    return ~(score >= -min(_FAR**2, torch.finfo(score.dtype).max))


def scores_of_differences(x_PC: Tensor) -> Tensor:
    """The scores (P,) of pairs whose float64 rows differ by ``x_PC``.

    Infinite differences, of rows at opposite ends of the range, count as the largest number.
    """
    largest = torch.finfo(x_PC.dtype).max
    x_PC = x_PC.clamp(-largest, largest)
    size_P1 = x_PC.abs().amax(1, keepdim=True)
    size_P1 = torch.where(size_P1 == 0, 1.0, size_P1)
    norm_P, size_P = (x_PC / size_P1).square().sum(1).sqrt(), size_P1[:, 0]
    distance_P = norm_P * size_P  # rounded roughly where it is subnormal
    near_P = (norm_P * (size_P / _NEAR)).sqrt() * _NEAR**2
    far_P = (norm_P * (size_P / _FAR)).sqrt() * _FAR**2
    usual_P = torch.where(distance_P > _FAR, far_P, distance_P.square())
    return torch.where(distance_P < _NEAR, near_P, usual_P).neg_()


def squared_distances(score: Tensor, scale: float = 1.0) -> Tensor:
    """What scores stand for, of rows times ``scale``; as float64, it may overflow or vanish."""
    square = -score
    if within_squares(score):
        return square * scale * scale
    unit = torch.full_like(square, _NEAR).masked_fill_(square > _FAR**2, _FAR)
    distance = (square / unit**2).square() * unit * scale
    return torch.where(beyond_squares(score), distance.square(), square * scale * scale)

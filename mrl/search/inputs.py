"""What the staged searches and the indexes take: tensors or numpy arrays, checked before long work.

Shapes: N rows, B bank, Q queries, D embedding width.
"""

import warnings
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

Matrix = Tensor | np.ndarray


def as_matrix(name: str, x: Matrix) -> Tensor:
    """``x`` (N, D) as a tensor over the same memory, which stays mapped if it is a memory map.

    Raises:
        TypeError: unless it is a tensor or numpy array of a floating-point type.
        ValueError: unless it has rows and columns.
    """
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f":
            raise TypeError(f"{name} must hold floating-point numbers, got {x.dtype}")
        with warnings.catch_warnings():  # of arrays that may not be written to: nothing here writes
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            x = torch.from_numpy(x)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point tensor or numpy array, got {kind}")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must be (rows, width), neither 0, got {tuple(x.shape)}")
    return x.detach()


def as_pair(bank: Matrix, queries: Matrix, *, one_device: bool = True) -> tuple[Tensor, Tensor]:
    """Bank (B, D) and queries (Q, D) as tensors of one width, dtype and (if so asked) device.

    Raises:
        TypeError, ValueError: see :func:`as_matrix`; or if the two do not match.
    """
    bank, queries = as_matrix("bank", bank), as_matrix("queries", queries)
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank and queries differ in width: {bank.shape[1]} and {queries.shape[1]}"
        )
    if bank.dtype != queries.dtype or (one_device and bank.device != queries.device):
        raise TypeError(
            f"bank and queries must share dtype and device, got {bank.dtype} on {bank.device} "
            f"and {queries.dtype} on {queries.device}"
        )
    return bank, queries


def check_metric(metric: str) -> None:
    if metric not in ("cosine", "l2"):
        raise ValueError(f"metric must be 'cosine' or 'l2', got {metric!r}")


def check_count(name: str, count: int, largest: int, of_what: str) -> None:
    """Refuse a number of results outside 1..largest."""
    if isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= count <= largest:
        raise ValueError(f"{name} must lie in 1..{largest} ({of_what}), got {count}")

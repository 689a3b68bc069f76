"""Input checks of the searches, with errors that say which row of which set is at fault."""

import torch
from torch import Tensor

_MAX_SQUARE = 1e37  # squared norms above this overflow float32 in 2<q,x> - |x|^2


def check_sets(
    bank: Tensor,
    queries: Tensor,
    k: int,
    metric: str,
    query_chunk: int | None,
    bank_chunk: int | None,
) -> None:
    """Refuse shapes, types and counts that no search can answer."""
    if metric not in ("cosine", "l2"):
        raise ValueError(f"metric must be 'cosine' or 'l2', got {metric!r}")
    for name, x in (("bank", bank), ("queries", queries)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        if x.ndim != 2 or 0 in x.shape:
            raise ValueError(f"{name} must be (rows, width), neither 0, got {tuple(x.shape)}")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank and queries differ in width: {bank.shape[1]} and {queries.shape[1]}"
        )
    if bank.dtype != queries.dtype or bank.device != queries.device:
        raise TypeError(
            f"bank and queries must share dtype and device, got {bank.dtype} on {bank.device} "
            f"and {queries.dtype} on {queries.device}"
        )
    if not 1 <= k <= len(bank):
        raise ValueError(f"k must lie in 1..{len(bank)} (the rows of the bank), got {k}")
    for name, chunk in (("query_chunk", query_chunk), ("bank_chunk", bank_chunk)):
        if chunk is not None and chunk < 1:
            raise ValueError(f"{name} must be at least 1, got {chunk}")


def check_norms(name: str, x: Tensor, sq_GN: Tensor, widths: list[int], min_norm: float) -> None:
    """Refuse NaN, infinities, overflow, and prefixes shorter than ``min_norm``.

    Args:
        name: "bank" or "queries", for the message.
        x: (N, D).
        sq_GN: squared norms of its prefixes (G, N), float64.
        widths: the G prefix widths.
    """
    row = _first(~(sq_GN[-1] <= _MAX_SQUARE))
    if row is not None:
        m = next(m for m, sq in zip(widths, sq_GN[:, row], strict=True) if not sq <= _MAX_SQUARE)
        where = f"{name} row {row} (granularity {m})"
        if not torch.isfinite(x[row, :m]).all():
            raise ValueError(f"{where} has NaN or infinite values")
        raise ValueError(f"{where} has values too large for float32 products: scale the data down")
    row = _first(sq_GN[0].sqrt() < min_norm)  # norms grow with the width: the first is the least
    if row is not None:
        raise ValueError(
            f"{name} row {row} is all zeros in its first {widths[0]} columns (granularity "
            f"{widths[0]}), so its cosine is undefined: drop such rows, use metric='l2', or pass "
            f"allow_zero=True to score them 0"
        )


def _first(mask_N: Tensor) -> int | None:
    """Index of the first True, or None."""
    return int(mask_N.int().argmax()) if bool(mask_N.any()) else None

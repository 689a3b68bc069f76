"""Nearest neighbours the obvious way, in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor


def brute_force(
    bank: Tensor, queries: Tensor, widths: list[int], k: int, metric: str
) -> tuple[Tensor, Tensor]:
    scores, indices = [], []
    for m in widths:
        x, q = bank[:, :m].double(), queries[:, :m].double()
        if metric == "cosine":
            distance = -(F.normalize(q, dim=1)[:, None] * F.normalize(x, dim=1)).sum(2)
        else:
            distance = (q[:, None] - x).square().sum(2)
        value, index = distance.sort(dim=1, stable=True)
        scores.append(-value[:, :k] if metric == "cosine" else value[:, :k])
        indices.append(index[:, :k])
    return torch.stack(scores), torch.stack(indices)

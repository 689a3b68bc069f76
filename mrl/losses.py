"""Losses over nested prefixes.

Shapes: N examples, C classes, D embedding width, M prefix width.
"""

from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mrl.nesting import check_granularities, check_weights, truncate


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Refuse class indices (N,) outside 0..C-1, or probabilities (N, C) of another C.

    On a GPU this waits for the device.

    Raises:
        ValueError: with the first offending label and where it stands.
    """
    if labels.is_floating_point():
        if labels.ndim != 2 or labels.shape[1] != num_classes:
            raise ValueError(
                f"soft labels must have shape (N, {num_classes}), got {tuple(labels.shape)}"
            )
        return
    outside = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(outside):
        i = outside[0].tolist()
        raise ValueError(
            f"label {labels[tuple(i)].item()} at index {i[0]} is outside 0..{num_classes - 1} "
            f"({len(outside)} such labels)"
        )


def nested_cross_entropy(
    logits: Mapping[int, Tensor], labels: Tensor, label_smoothing: float = 0.0
) -> dict[int, Tensor]:
    """Softmax cross-entropy at every granularity (paper, equation 1 and Algorithm 1).

    Args:
        logits: granularity -> (N, C).
        labels: class indices (N,) int64, or class probabilities (N, C).
        label_smoothing: probability mass spread evenly over the C classes.

    Returns:
        granularity -> scalar mean over the N examples, in float32 or wider.
    """
    losses = {}
    for m, logits_NC in logits.items():
        if logits_NC.dtype.itemsize < 4:  # bf16 and fp16 logits lose the loss's small differences
            logits_NC = logits_NC.float()
        losses[m] = F.cross_entropy(logits_NC, labels, label_smoothing=label_smoothing)
    return losses


def weighted_sum(losses: Mapping[int, Tensor], weights: Sequence[float]) -> Tensor:
    """Sum over m of c_m * loss_m: the paper's total is this sum, not the mean (equation 1)."""
    terms = [w * loss for w, loss in zip(weights, losses.values(), strict=True) if w != 0.0]
    if not terms:
        raise ValueError(f"all loss weights are zero: {list(weights)}")
    return sum(terms[1:], start=terms[0])


class MatryoshkaLoss(nn.Module):
    """Any loss on embeddings, summed over nested prefixes (paper, section 3 and appendix C).

    Args:
        loss_fn: called as ``loss_fn(*truncated, **kwargs)``; returns a scalar.
        granularities: strictly increasing prefix widths.
        weights: c_m, one each; default 1.
        normalize: L2-normalise each prefix after the cut (contrastive losses want this).

    ``forward(*embeddings, **kwargs)`` cuts every positional argument (each (N, D)) to each prefix;
    keyword arguments are passed on as they are, so hand labels over by keyword.  Returns
    ``(total, {m: loss})``.  ``loss_fn`` is never patched, and sees a fresh view at each width.

    Raises:
        ValueError: if the granularities are no strictly increasing positive integers, exceed D, or
            the weights do not match them.
    """

    def __init__(
        self,
        loss_fn: Callable[..., Tensor],
        granularities: Sequence[int],
        weights: Sequence[float] | None = None,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.loss_fn = loss_fn
        largest = max(granularities, default=0)
        self.granularities = check_granularities(granularities, embed_dim=largest)
        self.weights = check_weights(weights, self.granularities)
        self.normalize = normalize

    def forward(self, *embeddings: Tensor, **kwargs: object) -> tuple[Tensor, dict[int, Tensor]]:
        if not embeddings:
            raise ValueError("MatryoshkaLoss needs at least one (N, D) tensor of embeddings")
        losses = {}
        for m in self.granularities:
            truncated = [truncate(z_ND, m, self.normalize) for z_ND in embeddings]
            losses[m] = self.loss_fn(*truncated, **kwargs)
        return weighted_sum(losses, self.weights), losses

"""Linear classifiers on nested prefixes.

Shapes: N examples, C classes, D embedding width, M prefix width.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from mrl.fused_loss import nested_loss, tied_loss
from mrl.losses import check_labels, nested_cross_entropy, weighted_sum
from mrl.nesting import check_granularities, check_weights, prefix


class _Head(nn.Module):
    """What both heads share: the checks, and the loss over all granularities."""

    def __init__(self, embed_dim: int, num_classes: int, granularities: Sequence[int]) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.embed_dim = embed_dim
        self.num_classes = num_classes
        self.granularities = check_granularities(granularities, embed_dim)

    @abstractmethod
    def forward(self, z: Tensor) -> dict[int, Tensor]: ...

    def loss(
        self,
        z: Tensor,
        labels: Tensor,
        weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Weighted sum of the cross-entropies at every granularity (paper, equation 1).

        Args:
            z: embeddings (N, D).
            labels: class indices (N,) int64, or class probabilities (N, C).
            weights: c_m, one for each granularity; default 1 (the paper's sum, not a mean).
            label_smoothing: as in :func:`mrl.nested_cross_entropy`.

        Returns:
            ``(total, {m: loss})``: scalars; the parts are unweighted.  On a CPU the gradient of
            ``total`` is computed along with it (:mod:`mrl.fused_loss`); that of a part only when it
            is asked for.

        Raises:
            ValueError: for labels (on the CPU) outside 0..C-1, or weights that do not fit.
            RuntimeError: by backward on a CPU, if a second derivative is asked for (create_graph).
        """
        if labels.device.type == "cpu":  # on a GPU it would wait for the device at every step
            check_labels(labels, self.num_classes)
        self._check_width(z)
        c_G = check_weights(weights, self.granularities)
        # On a GPU the plain path takes a third to all of the fused one's time (an H100).
        if len(c_G) == 1 or not any(c_G) or labels.requires_grad or z.is_cuda:
            losses = nested_cross_entropy(self(z), labels, label_smoothing)
            return weighted_sum(losses, c_G), losses
        total, losses_G = self._fused_loss(z, labels, c_G, label_smoothing)
        return total, dict(zip(self.granularities, losses_G.unbind(), strict=True))

    @abstractmethod
    def _fused_loss(
        self, z: Tensor, labels: Tensor, c_G: list[float], label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        """The total, and the losses (G,), as :mod:`mrl.fused_loss` computes them."""

    def _check_width(self, z: Tensor) -> None:
        if z.shape[-1] != self.embed_dim:
            raise ValueError(
                f"this head reads embeddings of width {self.embed_dim}, got {z.shape[-1]} "
                f"(shape {tuple(z.shape)})"
            )

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_classes}, granularities={self.granularities}"


class NestedHead(_Head):
    """MRL: an independent linear classifier for each granularity (paper, Algorithm 2).

    ``head(z)`` maps embeddings (N, D) to ``{m: logits (N, C)}``; the classifier of m reads only
    z[:, :m].  With one granularity ``[m]`` it is the fixed-feature baseline FF-m.

    Raises:
        ValueError: if the granularities are not strictly increasing integers in 1..embed_dim.
    """

    def __init__(
        self, embed_dim: int, num_classes: int, granularities: Sequence[int], bias: bool = True
    ) -> None:
        super().__init__(embed_dim, num_classes, granularities)
        self.classifiers = nn.ModuleDict(
            {str(m): nn.Linear(m, num_classes, bias=bias) for m in self.granularities}
        )

    def forward(self, z: Tensor) -> dict[int, Tensor]:
        self._check_width(z)
        return {m: self.classifiers[str(m)](prefix(z, m)) for m in self.granularities}

    def _fused_loss(
        self, z: Tensor, labels: Tensor, c_G: list[float], label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        parameters = dict(self.classifiers.named_parameters())
        weights = [parameters[f"{m}.weight"] for m in self.granularities]
        biases = [p for name, p in parameters.items() if name.endswith("bias")]
        return nested_loss(z, weights, biases, labels, c_G, label_smoothing)


class TiedHead(_Head):
    """MRL-E: one weight (C, D) whose first m columns are the classifier of m (paper, section 3).

    The bias (C,) is shared by all granularities, as in the authors' released code (the paper's
    Algorithm 2 leaves it out: ``bias=False``).  Since the classifiers are nested, logits at the
    next granularity are those at the last plus one block of columns: all of them cost one product.

    Raises:
        ValueError: if the granularities are not strictly increasing integers in 1..embed_dim.
    """

    def __init__(
        self, embed_dim: int, num_classes: int, granularities: Sequence[int], bias: bool = True
    ) -> None:
        super().__init__(embed_dim, num_classes, granularities)
        classifier = nn.Linear(embed_dim, num_classes, bias=bias)
        self.weight = classifier.weight
        self.bias = classifier.bias

    def forward(self, z: Tensor) -> dict[int, Tensor]:
        self._check_width(z)
        logits: dict[int, Tensor] = {}
        start = 0
        for m in self.granularities:
            block_NC = F.linear(
                z[..., start:m], self.weight[:, start:m], None if start else self.bias
            )
            logits[m] = logits[start] + block_NC if start else block_NC
            start = m
        return logits

    def _fused_loss(
        self, z: Tensor, labels: Tensor, c_G: list[float], label_smoothing: float
    ) -> tuple[Tensor, Tensor]:
        return tied_loss(
            z, self.weight, self.bias, self.granularities, labels, c_G, label_smoothing
        )

    def logits_at(self, z: Tensor, m: int) -> Tensor:
        """Logits (N, C) of any width m in 1..D, trained or not, by the column slice W[:, :m]."""
        return F.linear(prefix(z, m), prefix(self.weight, m), self.bias)


HEADS: dict[str, type[NestedHead] | type[TiedHead]] = {"nested": NestedHead, "tied": TiedHead}


def build_head(
    kind: str, embed_dim: int, num_classes: int, granularities: Sequence[int], bias: bool = True
) -> NestedHead | TiedHead:
    """The head named ``kind`` ("nested" or "tied")."""
    return HEADS[kind](embed_dim, num_classes, granularities, bias)


def method_name(head: nn.Module) -> str:
    """The paper's name of what this head trains: "MRL", "MRL-E", or "FF" for a single width."""
    if isinstance(head, TiedHead):
        return "MRL-E"
    assert isinstance(head, NestedHead)
    return "MRL" if len(head.granularities) > 1 else "FF"

"""The loss of a head at every granularity and its gradient, computed together.

The plain path, :func:`mrl.nested_cross_entropy` of ``head(z)``, leaves the gradient to autograd,
which keeps log-probabilities of every granularity until then.  Here the gradient is ready when the
loss is, chunk by chunk of examples, and the backward pass only scales it.

Shapes: N examples, R of them in a chunk, C classes, D embedding width, M prefix width, K width of a
block of columns, G granularities.  c_G: the weights c_m of the G losses in their sum.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 32 * 2**20  # of logits and their gradients at once: bounds the peak memory

# (c_G, z, *parameters) -> losses (G,), and a gradient or None for z and for each parameter
_Pass = Callable[..., tuple[Tensor, list[Tensor | None]]]


def nested_loss(
    z_ND: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    labels: Tensor,
    c_G: Sequence[float],
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of independent linear classifiers (C, M), each of the first M entries of z.

    Under autocast the products run in its type; logits, losses and gradients are kept in float32.

    Args:
        biases: (C,) each, or none at all.
        labels: class indices (N,) int64, or class probabilities (N, C); they get no gradient.

    Returns:
        ``(sum of c_m * loss_m, losses (G,))`` in float32 or wider.

    Raises:
        ValueError: if z is not (N, D) with N at least 1, or there are not N labels.
        RuntimeError: by backward, if a second derivative is asked for (create_graph).
    """
    return _apply(_nested_pass, labels, label_smoothing, c_G, z_ND, *weights, *biases)


def tied_loss(
    z_ND: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None,
    granularities: Sequence[int],
    labels: Tensor,
    c_G: Sequence[float],
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """As :func:`nested_loss`, where the first m columns of one weight are the classifier of m."""
    run = partial(_tied_pass, granularities=granularities)
    parameters = [weight_CD] if bias_C is None else [weight_CD, bias_C]
    return _apply(run, labels, label_smoothing, c_G, z_ND, *parameters)


def _apply(
    run: _Pass, labels: Tensor, label_smoothing: float, c_G: Sequence[float], *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    z_ND = inputs[0]
    if z_ND.ndim != 2 or len(z_ND) < 1 or labels.shape[:1] != z_ND.shape[:1]:
        raise ValueError(
            f"expected embeddings (N, D), N at least 1, and N labels, got shapes "
            f"{tuple(z_ND.shape)} and {tuple(labels.shape)}"
        )
    device = z_ND.device.type
    autocast = torch.is_autocast_enabled(device) and z_ND.dtype != torch.float64
    run = partial(
        run,
        cross_entropy=partial(_cross_entropy, labels, label_smoothing),
        wanted=[torch.is_grad_enabled() and t.requires_grad for t in inputs],
        dtype=torch.get_autocast_dtype(device) if autocast else None,
    )
    return _FusedLoss.apply(run, c_G, *inputs)


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: _Pass, c_G: Sequence[float], *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(inputs[0].device.type, enabled=False):
            losses_G, ctx.grads = run(c_G, *inputs)
        ctx.run, ctx.c_G = run, c_G
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        terms = [c * loss for c, loss in zip(c_G, losses_G, strict=True) if c != 0.0]
        return torch.stack(terms).sum(), losses_G

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, grad_losses_G: Tensor | None) -> Any:
        if torch.is_grad_enabled():  # create_graph=True; its result would be taken for a constant
            plain = "mrl.nested_cross_entropy(head(z), labels)"
            raise RuntimeError(f"head.loss has no second derivative: for one, add up {plain}")
        grads, ctx.grads = ctx.grads, None  # let go: autograd copies a gradient that others hold
        if grads is not None and grad_total is not None and grad_losses_G is None:
            # On a GPU, looking at the factor would wait for the device.
            if not (grad_total.is_cpu and grad_total.item() == 1.0):
                grads = [None if grad is None else grad.mul_(grad_total) for grad in grads]
            return None, None, *grads
        # Asked for again, or for single losses: with these c_m it has to be computed anew.
        c_G = [0.0 if grad_total is None else c * float(grad_total) for c in ctx.c_G]
        if grad_losses_G is not None:
            c_G = [c + grad for c, grad in zip(c_G, grad_losses_G.tolist(), strict=True)]
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return None, None, *ctx.run(c_G, *ctx.saved_tensors)[1]


def _nested_pass(
    c_G: Sequence[float],
    z_ND: Tensor,
    *parameters: Tensor,
    cross_entropy: Callable[..., Tensor],
    wanted: Sequence[bool],
    dtype: torch.dtype | None,
) -> tuple[Tensor, list[Tensor | None]]:
    G, N, C = len(c_G), len(z_ND), len(parameters[0])
    used = [True, *(c != 0.0 for c in [*c_G, *c_G])]  # a classifier of weight 0 gets no gradient
    wanted = [w and u for w, u in zip(wanted, used, strict=False)]
    grads = _zero_grads([z_ND, *parameters], wanted)
    losses_G = z_ND.new_zeros(G, dtype=_wide(z_ND))
    biases, bias_grads = parameters[G:] or [losses_G.new_zeros(C)] * G, grads[1 + G :] or [None] * G
    z_ND, *weights = (t if dtype is None else t.to(dtype) for t in (z_ND, *parameters[:G]))
    chunks = _chunks(N, 2 * C * losses_G.itemsize)
    buffers = losses_G.new_empty(2, chunks[0].stop, C)
    for rows in chunks:
        logits_RC, grad_RC = buffers[:, : rows.stop - rows.start]
        for g, weight_CM in enumerate(weights):
            cut = rows, slice(weight_CM.shape[1])
            logits_RC.copy_(biases[g])
            _add_product(logits_RC, z_ND[cut], weight_CM.T)
            losses_G[g] += cross_entropy(rows, logits_RC, out=grad_RC) / N
            if c_G[g] != 0.0:
                scale = c_G[g] / N  # of the product: fp16 would lose the small entries divided by N
                if (grad_bias_C := bias_grads[g]) is not None:
                    grad_bias_C.add_(grad_RC.sum(0), alpha=scale)
                short_RC = grad_RC.to(z_ND.dtype)
                _add_product(_cut(grads[0], *cut), short_RC, weight_CM, scale)
                _add_product(grads[1 + g], short_RC.T, z_ND[cut], scale)
    return losses_G, grads


def _tied_pass(
    c_G: Sequence[float],
    z_ND: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor | None = None,
    *,
    granularities: Sequence[int],
    cross_entropy: Callable[..., Tensor],
    wanted: Sequence[bool],
    dtype: torch.dtype | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """A block of columns is read at its own granularity and at every wider one.

    So its gradient is one product with the sum of theirs, which grows from the widest down.
    """
    G, N, C = len(c_G), len(z_ND), len(weight_CD)
    grads = _zero_grads([z_ND, weight_CD, *([] if bias_C is None else [bias_C])], wanted)
    losses_G = z_ND.new_zeros(G, dtype=_wide(z_ND))
    z_ND, weight_CD = (t if dtype is None else t.to(dtype) for t in (z_ND, weight_CD))
    start_C = losses_G.new_zeros(C) if bias_C is None else bias_C
    used = [g for g in range(G) if c_G[g] != 0.0 and any(wanted)]
    used_blocks = _blocks([granularities[g] for g in used])
    kept = G if used else 1
    chunks = _chunks(N, (1 + kept) * C * losses_G.itemsize)
    buffers = losses_G.new_empty(1 + kept, chunks[0].stop, C)
    for rows in chunks:
        logits_RC, *grad_GRC = buffers[:, : rows.stop - rows.start]
        logits_RC.copy_(start_C)
        for g, columns in enumerate(_blocks(granularities)):
            _add_product(logits_RC, z_ND[rows, columns], weight_CD[:, columns].T)
            losses_G[g] += cross_entropy(rows, logits_RC, out=grad_GRC[g % kept]) / N
        sum_RC = losses_G.new_zeros(1, C)
        for g, columns in reversed([*zip(used, used_blocks, strict=True)]):
            sum_RC = torch.add(sum_RC, grad_GRC[g], alpha=c_G[g], out=grad_GRC[g])
            short_RC = sum_RC.to(z_ND.dtype)
            _add_product(_cut(grads[0], rows, columns), short_RC, weight_CD[:, columns], 1 / N)
            grad_weight_CK = _cut(grads[1], slice(None), columns)
            _add_product(grad_weight_CK, short_RC.T, z_ND[rows, columns], 1 / N)
        if bias_C is not None and grads[2] is not None:
            grads[2].add_(sum_RC.sum(0), alpha=1 / N)
    return losses_G, grads


def _cross_entropy(
    labels: Tensor, label_smoothing: float, rows: slice, logits_RC: Tensor, out: Tensor
) -> Tensor:
    """Sum over the chunk's examples; ``out`` (R, C) gets the gradient of the logits.

    Each row of logits is shifted, to 0 at its largest, which changes no softmax of them.
    """
    logits_RC.sub_(logits_RC.amax(1, keepdim=True))
    torch.softmax(logits_RC, 1, out=out)
    # Of log(sum of exp): the largest probability, unlike others, never underflows.
    log_sum_R1 = -out.amax(1, keepdim=True).log()
    labels, spread = labels[rows], label_smoothing / logits_RC.shape[1]
    if labels.is_floating_point():
        target_RC = labels.to(out.dtype) * (1 - label_smoothing) + spread
        total_R1 = target_RC.sum(1, keepdim=True)
        loss = (total_R1 * log_sum_R1).sum() - (target_RC * logits_RC).sum()
        out.mul_(total_R1).sub_(target_RC)
        return loss
    label_R1, hit = labels[:, None], 1 - label_smoothing
    loss = log_sum_R1.sum() - hit * logits_RC.gather(1, label_R1).sum()
    if label_smoothing != 0.0:
        loss -= spread * logits_RC.sum()
    out.scatter_add_(1, label_R1, out.new_full(label_R1.shape, -hit))
    if label_smoothing != 0.0:
        out.sub_(spread)
    return loss


def _add_product(out: Tensor | None, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """``out += scale * a @ b``; a product in a shorter type is added up in the type of ``out``."""
    if out is None:
        return
    if out.dtype == a.dtype:
        out.addmm_(a, b, alpha=scale)
    else:
        out.add_(a @ b, alpha=scale)


def _chunks(num_examples: int, bytes_per_example: int) -> list[slice]:
    """Runs of examples whose buffers fit in CHUNK_BYTES, equally long but for the last."""
    count = -(-num_examples // max(1, CHUNK_BYTES // bytes_per_example))
    size = -(-num_examples // count)
    return [slice(a, min(a + size, num_examples)) for a in range(0, num_examples, size)]


def _blocks(granularities: Sequence[int]) -> list[slice]:
    return [slice(a, b) for a, b in pairwise([0, *granularities])]


def _cut(t: Tensor | None, rows: slice, columns: slice) -> Tensor | None:
    return None if t is None else t[rows, columns]


def _wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def _zero_grads(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    pairs = zip(tensors, wanted, strict=True)
    return [torch.zeros_like(t, dtype=_wide(t)) if w else None for t, w in pairs]

"""Linear classification: the trained heads on the judged split.

Shapes: N images, D embedding width, C classes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mrl.evaluation.class_matching import is_right
from mrl.evaluation.contract import Features, Head, Score, per_cent

if TYPE_CHECKING:
    from mrl.config import ClassifyConfig

_CHUNK = 4096  # images; bounds the memory that the logits take


def run(bank: None, queries: Features, head: Head, cfg: "ClassifyConfig") -> Iterator[Score]:
    """``top1`` of the head at every granularity; ``bank`` is not read."""
    for m, value in top1(lambda z: head(z).items(), queries).items():
        yield Score("top1", m, value, len(queries))


@torch.inference_mode()
def top1(
    logits_of: Callable[[Tensor], Iterable[tuple[int, Tensor]]], features: Features
) -> dict[int, float]:
    """Per cent right at each width m, where ``logits_of(z (N, D))`` gives m and its logits (N, C).

    Logits are read as they come: those of thousands of widths never exist at once.

    Where the images have some of the classes only, so have the predictions, as the paper does
    with ImageNet-A and -R.
    """
    match = features.in_head
    correct: dict[int, list[Tensor]] = {}
    pairs = zip(features.z.split(_CHUNK), features.labels.split(_CHUNK), strict=True)
    for z_ND, labels_N in pairs:
        for m, logits_NC in logits_of(z_ND.float()):
            best_N = logits_NC.argmax(1) if match is None else match.predicted(logits_NC)
            correct.setdefault(m, []).append(is_right(best_N, labels_N, match))
    return {m: per_cent(torch.cat(parts)) for m, parts in correct.items()}

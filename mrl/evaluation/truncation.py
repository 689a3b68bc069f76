"""What is lost when an embedding is cut: of its neighbours, and of 1-NN and retrieval.

It needs no model and, for the neighbours, no labels: for any embeddings whose trailing entries can
be dropped.

Shapes: B bank, Q queries, K neighbours.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mrl.evaluation.class_matching import is_right, shared_labels
from mrl.evaluation.contract import Features, Score, WidthsOf, per_cent
from mrl.evaluation.neighbours import neighbours, num_others, usual
from mrl.row_names import BYTES
from mrl.search.cost import bytes_per_item
from mrl.search.metrics import neighbour_recall, retrieval_metrics

if TYPE_CHECKING:
    from mrl.config import TruncationConfig

_USUAL_K = 10


def run(
    bank: Features, queries: Features, head: WidthsOf, cfg: "TruncationConfig"
) -> Iterator[Score]:
    """At every granularity: ``bytes/item`` of the bank, ``neighbours@k`` (how much of the k nearest
    at full width is among the k nearest there) and, with labels, ``top1_k1`` and both ``mAP@k``.

    Raises:
        ValueError: if ``cfg.k`` is more than there are neighbours.
    """
    most = num_others(bank, queries)
    k = usual("truncation", _USUAL_K, bank, queries) if cfg.k is None else cfg.k
    if not 1 <= k <= most:
        raise ValueError(f"evals.truncation.k must lie in 1..{most} (the neighbours), got {k}")
    widths = sorted({*head.granularities, head.embed_dim})
    found = dict(zip(widths, neighbours(bank, queries, widths, k), strict=True))
    for m in head.granularities:
        yield Score(BYTES, m, bytes_per_item(m, str(bank.z.dtype)), len(queries))
        recall = neighbour_recall(found[m], found[head.embed_dim])
        yield Score(f"neighbours@{k}", m, 100 * recall, len(queries))
        if not (bank.labelled and queries.labelled):
            continue
        nearest_Q = bank.labels[found[m][:, 0]]
        correct_Q = is_right(nearest_Q, queries.labels, queries.in_bank)
        yield Score("top1_k1", m, per_cent(correct_Q), len(queries))
        bank_labels_B, query_labels_Q = shared_labels(bank.labels, queries.labels, queries.in_bank)
        metrics = retrieval_metrics(found[m], query_labels_Q, bank_labels_B, [k], queries.ids)
        for name in (f"mAP@{k}", f"mAP@{k}_standard"):
            yield Score(name, m, 100 * metrics[name], len(queries))

"""Search on nested prefixes: exact at every width, adaptive, by funnel; its metrics and its cost.

Needs torch and numpy only; FAISS for the indexes of other kinds than "exact".
"""

from mrl.search.adaptive import adaptive_search, funnel_search
from mrl.search.cost import (
    Plan,
    bytes_per_item,
    bytes_per_query,
    fitting,
    mflops_per_query,
    pareto_front,
    pick_plan,
    validation_plans,
)
from mrl.search.knn import nested_knn
from mrl.search.metrics import neighbour_recall, retrieval_metrics
from mrl.search.prefix_index import PrefixIndex
from mrl.search.reranking import rerank
from mrl.search.sharded import sharded_knn

__all__ = [
    "Plan",
    "PrefixIndex",
    "adaptive_search",
    "bytes_per_item",
    "bytes_per_query",
    "fitting",
    "funnel_search",
    "mflops_per_query",
    "neighbour_recall",
    "nested_knn",
    "pareto_front",
    "pick_plan",
    "rerank",
    "retrieval_metrics",
    "sharded_knn",
    "validation_plans",
]

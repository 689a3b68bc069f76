"""Matryoshka Representation Learning: one embedding, good at every prefix.

The head, the loss and the search for other people's training code; ``train.py`` and ``eval.py``
are the experiments built from them.
"""

from mrl.checkpoint import load_model
from mrl.heads import NestedHead, TiedHead
from mrl.losses import MatryoshkaLoss, nested_cross_entropy
from mrl.model import MRLModel
from mrl.nesting import log_spaced, prefix, truncate, uniform
from mrl.search import adaptive_search, funnel_search, nested_knn

__version__ = "0.1.0"

__all__ = [
    "MRLModel",
    "MatryoshkaLoss",
    "NestedHead",
    "TiedHead",
    "adaptive_search",
    "funnel_search",
    "load_model",
    "log_spaced",
    "nested_cross_entropy",
    "nested_knn",
    "prefix",
    "truncate",
    "uniform",
]

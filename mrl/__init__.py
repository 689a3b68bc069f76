"""Matryoshka Representation Learning: one embedding, good at every prefix.

The head, the loss and the search for other people's training code; ``train.py`` and ``eval.py``
are the experiments built from them.

What is named here is imported when it is first asked for: a command that will be refused need not
wait for PyTorch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "checkpoint": ["load_model"],
    "heads": ["NestedHead", "TiedHead"],
    "losses": ["MatryoshkaLoss", "nested_cross_entropy"],
    "model": ["MRLModel"],
    "nesting": ["log_spaced", "prefix", "truncate", "uniform"],
    "search": ["adaptive_search", "funnel_search", "nested_knn"],
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"mrl.{module}"), name)
    if not name.startswith("_") and find_spec(f"mrl.{name}"):  # mrl.search after `import mrl`
        return import_module(f"mrl.{name}")
    raise AttributeError(f"module 'mrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]

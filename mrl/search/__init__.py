"""Exact search on nested prefixes; needs nothing but torch."""

from mrl.search.knn import nested_knn

__all__ = ["nested_knn"]

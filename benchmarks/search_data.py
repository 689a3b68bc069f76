"""What the benchmarks of search look through."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

D, QUERIES = 2048, 1000
BLOCK = 50_000  # rows that are made, or given to FAISS, at once


class Data(NamedTuple):
    """Cluster centres and normal noise, column j of both scaled by j^-decay."""

    clusters: int
    noise: float
    decay: float

    def __str__(self) -> str:
        return f"{self.clusters} clusters, noise {self.noise:g}, decay {self.decay:g}"


# Of the searches in stages: what tells the clusters apart is mostly in the first columns, as in an
# embedding that was trained so; 16 of them alone still have a clearly lower mAP.
STAGED = Data(1000, 0.35, 1.5)


def data_of(args: argparse.Namespace) -> Data:
    return Data(args.clusters, args.noise, args.decay)


def clustered(items: int, data: Data) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Bank, queries, and the clusters of both as their classes."""
    make = rows_of(data)
    bank = torch.empty(items, D)
    labels = []
    for part in bank.split(BLOCK):
        rows, clusters = make(len(part))
        part.copy_(rows)
        labels.append(clusters)
    queries, query_labels = make(QUERIES)
    return bank, queries, (torch.cat(labels), query_labels)


def clustered_file(path: Path, items: int) -> tuple[np.ndarray, np.ndarray, tuple[Tensor, Tensor]]:
    """The same in float16, the bank mapped from a file."""
    make = rows_of(STAGED)
    bank = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(items, D))
    labels = []
    for first in range(0, items, BLOCK):
        rows, clusters = make(min(BLOCK, items - first))
        bank[first : first + len(rows)] = rows.half().numpy()
        labels.append(clusters)
    bank.flush()
    queries, query_labels = make(QUERIES)
    return np.load(path, mmap_mode="r"), queries.half().numpy(), (torch.cat(labels), query_labels)


def rows_of(data: Data) -> Callable[[int], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, D + 1).float() ** -data.decay
    centres = torch.randn(data.clusters, D, generator=generator)

    def make(count: int) -> tuple[Tensor, Tensor]:
        cluster = torch.randint(data.clusters, (count,), generator=generator)
        noise = torch.randn(count, D, generator=generator).mul_(data.noise)
        return noise.add_(centres[cluster]).mul_(scale), cluster

    return make

"""Exact search at many widths against the loop over FAISS's flat indices."""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import torch
from torch import Tensor

import mrl
from benchmarks.search_data import D, clustered, data_of
from benchmarks.turns import median_ratio, timed
from mrl.search.pairs import Pairs, pair_scores, prefix_norms

NINE = mrl.log_spaced(D)


@dataclass(frozen=True)
class Nested:
    """Exact search at many widths; FAISS is timed at some of them where there are too many."""

    name: str
    items: int
    widths: Sequence[int]
    k: int
    target: float  # times as fast as FAISS
    sampled: Sequence[int] = ()


NESTED = {
    "k1": Nested("9 log-spaced widths, k=1", 100_000, NINE, 1, 4),
    "k200": Nested("9 log-spaced widths, k=200", 100_000, NINE, 200, 2.5),
    "many": Nested("64 even widths, k=1", 100_000, range(32, D + 1, 32), 1, 25),
    "every": Nested(
        "every width to 2048, k=1", 20_000, range(1, D + 1), 1, 150, range(64, D + 1, 64)
    ),
}


def nested_rows(
    cases: Sequence[Nested], peak: float, args: argparse.Namespace
) -> Iterator[list[str]]:
    yield [
        "exact search", "bank", "ours, s", "FAISS, s", "its searches alone, s", "faster",
        "than its searches", "at least", "limit / ours", "same neighbours",
    ]  # fmt: skip
    for case in cases:
        bank, queries, _ = clustered(case.items, data_of(args))
        yield nested_row(case, bank, queries, peak, args)


def nested_row(
    case: Nested, bank: Tensor, queries: Tensor, peak: float, args: argparse.Namespace
) -> list[str]:
    widths = list(case.sampled or case.widths)
    scale = len(case.widths) / len(widths)
    mrl.nested_knn(bank[:5000], queries, case.widths, case.k)  # threads and libraries
    ours, theirs, searches = [], [], []
    for _ in range(args.rounds):
        seconds, (_, found) = timed(
            lambda: mrl.nested_knn(bank, queries, list(case.widths), case.k)
        )
        ours.append(seconds)
        whole, alone, expected = faiss_loop(bank, queries, widths, case.k)
        theirs.append(scale * whole)
        searches.append(scale * alone)
    found = found[[list(case.widths).index(m) for m in widths]]
    limit = 2 * len(bank) * len(queries) * case.widths[-1] / peak
    return [
        case.name + (f" (FAISS at {len(widths)} of them, scaled)" if case.sampled else ""),
        f"{len(bank):,}",
        *(f"{statistics.median(values):.2f}" for values in (ours, theirs, searches)),
        f"{median_ratio(theirs, ours):.1f}",
        f"{median_ratio(searches, ours):.1f}",
        f"{case.target:g}",
        f"{limit / statistics.median(ours):.2f}",
        agreement(bank, queries, widths, found, expected),
    ]


def faiss_loop(
    bank: Tensor, queries: Tensor, widths: Sequence[int], k: int
) -> tuple[float, float, Tensor]:
    """Seconds in all, of adding and searching alone, and the indices (G, Q, K)."""
    alone, found = 0.0, []
    start = time.perf_counter()
    for m in widths:
        x, q = (part[:, :m].numpy().copy() for part in (bank, queries))  # FAISS normalises in place
        faiss.normalize_L2(x)
        faiss.normalize_L2(q)
        before = time.perf_counter()
        index = faiss.IndexFlatL2(m)
        index.add(x)
        found.append(index.search(q, k)[1])
        alone += time.perf_counter() - before
    return time.perf_counter() - start, alone, torch.from_numpy(np.stack(found))


def agreement(
    bank: Tensor, queries: Tensor, widths: Sequence[int], ours: Tensor, theirs: Tensor
) -> str:
    """How many indices are the same; where they are not, ours must be as near or nearer."""
    norm_QG = prefix_norms(queries, widths)
    differing = ours != theirs
    for g, m in enumerate(widths):
        row_R = differing[g].any(1).nonzero()[:, 0]
        row_P = row_R.repeat_interleave(ours.shape[2])
        mine, other = (
            pair_scores(
                Pairs(bank, queries, "cosine", row_P, found[g, row_R].flatten()), m, norm_QG[:, g]
            ).view(len(row_R), ours.shape[2])
            for found in (ours, theirs)
        )
        # In whatever order FAISS lists them: place by place, the better one first.
        if bool((mine < other.sort(1, descending=True).values).any()):
            raise AssertionError(f"FAISS found nearer neighbours at width {m}")
    share = 100 * float((~differing).double().mean())
    return f"{share:.4g} %" + ("; where not, ours are as near or nearer" if differing.any() else "")

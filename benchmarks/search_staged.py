"""Adaptive retrieval against exact search; a graph over a prefix against one over all columns."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import torch
from torch import Tensor

import mrl
from benchmarks.search_data import BLOCK, STAGED, D, clustered, clustered_file
from benchmarks.turns import median_ratio, take_turns, timed
from mrl.search import PrefixIndex, retrieval_metrics

SHORT, SHORTLIST, K = 16, 200, 10


def adaptive(args: argparse.Namespace) -> Iterator[list[str]]:
    yield [
        f"{args.items:,} items in float16 on disk", "s", "faster than FAISS", "than nested_knn",
        "at least", "mAP@10",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bank, queries, labels = clustered_file(Path(folder) / "bank.npy", args.items)
        build_seconds, index = timed(lambda: PrefixIndex.build(bank, SHORT))
        search = {"shortlist": SHORTLIST, "k": K}
        cases: dict[str, Callable[[], tuple[float, Tensor]]] = {
            f"FAISS, exact at {D}": lambda: faiss_blocks(bank, queries),
            f"nested_knn, exact at {D}": lambda: indices_of(
                lambda: mrl.nested_knn(bank, queries, [D], K)
            ),
            f"adaptive, {SHORT} -> {D}": lambda: indices_of(
                lambda: mrl.adaptive_search(bank, queries, SHORT, D, **search)
            ),
            f"adaptive, with the {SHORT}-d prefixes kept": lambda: indices_of(
                lambda: mrl.adaptive_search(bank, queries, SHORT, D, index=index, **search)
            ),
        }
        seconds, found = seconds_and_found(take_turns(cases, args.rounds))
        faiss_name, exact_name, *_ = cases
        for name in cases:
            staged = name not in (faiss_name, exact_name)
            yield [
                name,
                f"{statistics.median(seconds[name]):.2f}",
                f"{median_ratio(seconds[faiss_name], seconds[name]):.1f}",
                f"{median_ratio(seconds[exact_name], seconds[name]):.1f}",
                "8" if staged else "",
                f"{mean_ap(found[name], labels):.2f}",
            ]
        yield [
            "keeping the prefixes, once, with the bank's hash",
            f"{build_seconds:.2f}",
            *[""] * 4,
        ]


def faiss_blocks(bank: np.ndarray, queries: np.ndarray) -> tuple[float, Tensor]:
    """Exact search over a bank that FAISS could not hold twice: block by block, in float32."""
    start = time.perf_counter()
    q = queries.astype(np.float32)
    faiss.normalize_L2(q)
    best: list[tuple[np.ndarray, np.ndarray]] = []
    for first in range(0, len(bank), BLOCK):
        x = bank[first : first + BLOCK].astype(np.float32)
        faiss.normalize_L2(x)
        scores, indices = faiss.knn(q, x, K, metric=faiss.METRIC_INNER_PRODUCT)
        best.append((scores, indices + first))
    scores, indices = (np.concatenate(part, 1) for part in zip(*best, strict=True))
    order = np.argsort(-scores, 1, kind="stable")[:, :K]
    found = torch.from_numpy(np.take_along_axis(indices, order, 1))
    return time.perf_counter() - start, found


def hnsw(args: argparse.Namespace) -> Iterator[list[str]]:
    yield [
        "HNSW32, 100,000 items", "build, s", "ms per query", "faster", "at least", "mAP@10",
        "of the exact 10",
    ]  # fmt: skip
    bank, queries, labels = clustered(100_000, STAGED)
    x, q = (part.numpy().copy() for part in (bank, queries))
    faiss.normalize_L2(x)
    faiss.normalize_L2(q)
    build_wide, wide = timed(lambda: graph(x))
    build_short, short = timed(lambda: PrefixIndex.build(bank, SHORT, "HNSW32"))
    search = {"shortlist": SHORTLIST, "k": K}
    name = f"adaptive, HNSW32 at {SHORT} -> {D}"
    cases = {
        f"HNSW32 at {D}": lambda: faiss_search(wide, q),
        f"the same, efSearch {SHORTLIST}": lambda: faiss_search(wide, q, SHORTLIST),
        name: lambda: indices_of(
            lambda: mrl.adaptive_search(bank, queries, SHORT, D, index=short, **search)
        ),
        f"of that: the graph at {SHORT} alone": lambda: indices_of(
            lambda: short.search(queries, SHORTLIST)
        ),
    }
    seconds, found = seconds_and_found(take_turns(cases, args.rounds))
    exact = mrl.nested_knn(bank, queries, [D], K)[1][0]
    builds = [f"{build_wide:.1f}", "", f"{build_short:.1f}", ""]
    base = seconds[f"HNSW32 at {D}"]
    for (case, values), build in zip(seconds.items(), builds, strict=True):
        top = found[case][:, :K]
        yield [
            case,
            build,
            f"{1000 * statistics.median(values) / len(queries):.3f}",
            f"{median_ratio(base, values):.1f}",
            "14" if case == name else "",
            f"{mean_ap(top, labels):.2f}",
            f"{100 * mrl.search.neighbour_recall(top, exact):.1f} %",
        ]


def graph(x: np.ndarray) -> faiss.Index:
    index = faiss.IndexHNSWFlat(x.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.add(x)
    return index


def faiss_search(
    index: faiss.IndexHNSW, q: np.ndarray, ef_search: int = 16
) -> tuple[float, Tensor]:
    index.hnsw.efSearch = ef_search
    seconds, (_, found) = timed(lambda: index.search(q, K))
    return seconds, torch.from_numpy(found)


def mean_ap(found: Tensor, labels: tuple[Tensor, Tensor]) -> float:
    bank_labels, query_labels = labels
    return 100 * retrieval_metrics(found[:, :K], query_labels, bank_labels, [K])[f"mAP@{K}"]


def indices_of(search: Callable[[], tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
    seconds, (_, found) = timed(search)
    return seconds, found[0] if found.ndim == 3 else found


def seconds_and_found(
    given: dict[str, list[tuple[float, Tensor]]],
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each case in each round, and what it found in the last."""
    seconds = {name: [seconds for seconds, _ in rounds] for name, rounds in given.items()}
    return seconds, {name: rounds[-1][1] for name, rounds in given.items()}

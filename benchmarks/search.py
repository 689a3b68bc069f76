"""Exact search at many widths, adaptive retrieval and memory, against FAISS in the same run.

    python benchmarks/search.py                          # all; 17 minutes on two cores
    python benchmarks/search.py --cases k1 k200 --decay 0.25 --clusters 60      # harder data
    python benchmarks/search.py --out results/benchmarks/search.md

k1, k200, many, every: ``mrl.nested_knn`` against the loop that one would write with FAISS: for each
width cut, normalise, add to an IndexFlatL2, search.  Its time is given with and without cutting and
normalising; the ratio is to the searches with all of it, as ours begins with the same arrays. Where
the indices differ, the distances decide, in float64, who is right.
adaptive: 16 -> 2048 with a shortlist of 200, over a float16 bank in a file, against exact search at
2048 by FAISS's flat index, block by block, and by nested_knn; mAP@10 with the clusters as classes.
hnsw: the same with HNSW32 over the 16-d prefix, against HNSW32 over all 2048, with FAISS's default
efSearch of 16 and with that of the short list, 200 (the paper does not say which it used).
memory: what nested_knn takes at most beyond the bank and the queries, in a process of its own.

Rounds take turns, so that a busy machine slows all; shown are medians, ratios are medians of the
ratios within a round.  "Limit" is the time that the multiply-adds of the widest width alone would
take at the float32 peak, measured in this run: a search that computes them all cannot be faster.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mrl
from benchmarks.machine import (
    forget_peak,
    matrix_peak,
    processor,
    resident_bytes,
)
from mrl.search import PrefixIndex, retrieval_metrics
from mrl.search.pairs import Pairs, pair_scores
from mrl.search.refine import prefix_norms

D, QUERIES = 2048, 1000
NINE = mrl.log_spaced(D)
SHORT, SHORTLIST, K = 16, 200, 10
BLOCK = 50_000  # rows that are made, or given to FAISS, at once
CPU = torch.device("cpu")


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


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    if args.memory_of:
        print(peak_beyond_inputs(*args.memory_of, args))
        return
    lines: list[str] = []

    def show(text: str = "") -> None:
        print(text, flush=True)
        lines.append(text)

    peak = matrix_peak(torch.float32, CPU)
    half = matrix_peak(torch.bfloat16, CPU)
    show(
        f"{processor()}, {args.threads} threads, load {os.getloadavg()[0]:.1f} before; torch "
        f"{torch.__version__}, FAISS {faiss.__version__}; peak {peak / 1e9:.0f} GFLOP/s in "
        f"float32, {half / 1e9:.0f} in bfloat16."
    )
    show(
        f"{QUERIES} queries, D {D}, medians of {args.rounds} rounds. Data: {data_of(args)}; for "
        f"searches in stages: {STAGED}."
    )
    nested_cases = [NESTED[name] for name in args.cases if name in NESTED]
    if nested_cases:
        table(show, nested_rows(nested_cases, peak, args))
    for name, case in (("adaptive", adaptive), ("hnsw", hnsw), ("memory", memory)):
        if name in args.cases:
            table(show, case(args))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n")


def table(show: Callable[[str], None], rows: Iterator[list[str]]) -> None:
    """A Markdown table; the first row is the header."""
    show("")
    for i, row in enumerate(rows):
        show(f"| {' | '.join(row)} |")
        if i == 0:
            show(f"| --- |{' ---: |' * (len(row) - 1)}")


# ---- exact search at many widths ----


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
        f"{ratio(theirs, ours):.1f}",
        f"{ratio(searches, ours):.1f}",
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


# ---- adaptive retrieval ----


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
        seconds, found = take_turns(cases, args.rounds)
        faiss_name, exact_name, *_ = cases
        for name in cases:
            staged = name not in (faiss_name, exact_name)
            yield [
                name,
                f"{statistics.median(seconds[name]):.2f}",
                f"{ratio(seconds[faiss_name], seconds[name]):.1f}",
                f"{ratio(seconds[exact_name], seconds[name]):.1f}",
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
    seconds, found = take_turns(cases, args.rounds)
    exact = mrl.nested_knn(bank, queries, [D], K)[1][0]
    builds = [f"{build_wide:.1f}", "", f"{build_short:.1f}", ""]
    base = seconds[f"HNSW32 at {D}"]
    for (case, values), build in zip(seconds.items(), builds, strict=True):
        top = found[case][:, :K]
        yield [
            case,
            build,
            f"{1000 * statistics.median(values) / len(queries):.3f}",
            f"{ratio(base, values):.1f}",
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


# ---- memory ----


def memory(args: argparse.Namespace) -> Iterator[list[str]]:
    yield ["peak beyond the inputs, MiB (at most 244)", "k=1", "k=200"]
    for items in (50_000, 100_000, 200_000):
        row = [f"bank of {items:,} x {D}, 9 widths"]
        for k in (1, 200):
            command = [sys.executable, __file__, "--memory-of", str(items), str(k)]
            command += ["--threads", str(args.threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row.append(f"{int(done.stdout) / 2**20:.0f}")
        yield row


def peak_beyond_inputs(items: int, k: int, args: argparse.Namespace) -> int:
    bank, queries, _ = clustered(items, data_of(args))
    mrl.nested_knn(bank[:5000], queries[:10], [8, D], 1)  # threads and libraries
    before = resident_bytes("VmRSS")
    forget_peak()
    mrl.nested_knn(bank, queries, NINE, k)
    return resident_bytes("VmHWM") - before


# ---- data and measuring ----


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


def data_of(args: argparse.Namespace) -> Data:
    return Data(args.clusters, args.noise, args.decay)


def rows_of(data: Data) -> Callable[[int], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, D + 1).float() ** -data.decay
    centres = torch.randn(data.clusters, D, generator=generator)

    def make(count: int) -> tuple[Tensor, Tensor]:
        cluster = torch.randint(data.clusters, (count,), generator=generator)
        noise = torch.randn(count, D, generator=generator).mul_(data.noise)
        return noise.add_(centres[cluster]).mul_(scale), cluster

    return make


def mean_ap(found: Tensor, labels: tuple[Tensor, Tensor]) -> float:
    bank_labels, query_labels = labels
    return 100 * retrieval_metrics(found[:, :K], query_labels, bank_labels, [K])[f"mAP@{K}"]


def indices_of(search: Callable[[], tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
    seconds, (_, found) = timed(search)
    return seconds, found[0] if found.ndim == 3 else found


def take_turns(
    cases: dict[str, Callable[[], tuple[float, Tensor]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Seconds of each case in each round after one to warm up, and what it found."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    found: dict[str, Tensor] = {}
    for number in range(rounds + 1):
        for name, case in cases.items():
            value, found[name] = case()
            if number:
                seconds[name].append(value)
    return seconds, found


def timed(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def ratio(values: list[float], base: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


def arguments() -> argparse.Namespace:
    cases = (*NESTED, "adaptive", "hnsw", "memory")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.6)
    parser.add_argument("--decay", type=float, default=0.5)
    parser.add_argument("--items", type=int, default=1_000_000, help="of the adaptive case")
    parser.add_argument("--folder", help="for its bank, 4 KB an item (default: the system's)")
    parser.add_argument("--out", type=Path, help="Markdown file to write as well")
    parser.add_argument("--memory-of", type=int, nargs=2, metavar=("ITEMS", "K"), help="only this")
    return parser.parse_args()


if __name__ == "__main__":
    main()

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
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mrl
from benchmarks.machine import forget_peak, matrix_peak, resident_bytes
from benchmarks.search_data import QUERIES, STAGED, D, clustered, data_of
from benchmarks.search_exact import NESTED, NINE, nested_rows
from benchmarks.search_staged import adaptive, hnsw
from mrl.tracking import device_name

CPU = torch.device("cpu")


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
        f"{device_name(CPU)}, {args.threads} threads, load {os.getloadavg()[0]:.1f} before; torch "
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

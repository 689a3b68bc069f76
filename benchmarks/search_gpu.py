"""Exact search at nine widths on one GPU: ImageNet-1K's training set as the bank, its validation
set as the queries.

    python benchmarks/search_gpu.py                      # 11 GB of GPU memory for the bank alone
    python benchmarks/search_gpu.py --device cpu --items 20000 --queries 500    # a try

``mrl.nested_knn`` with its kernel and without, against the loop over the widths that one would
write in plain PyTorch: cut, normalise, multiply in float32 (no TF32), take the best, block by
block. Both times are shown: what passes, and what the GPU's kernels take, by PyTorch's profiler;
the target is for the kernels. Rounds take turns; shown are medians. Where indices differ, the
cosines decide, in float64, who is right. "Peak" is of a large bfloat16 matrix product in this run.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mrl
from benchmarks.machine import matrix_peak, synchronize
from mrl.search.block_values import kernel_works
from mrl.tracking import device_name

D, CLUSTERS, NOISE, DECAY = 2048, 1000, 0.6, 0.5  # column j is scaled by j^-DECAY
TARGET = 5.0  # seconds of kernels, on an H200; 8 on an H100
BLOCK = 2**16  # bank rows of the plain loop
CHUNK = 2**13  # queries of the plain loop
Indices = Tensor  # int64 (G, Q)


def main() -> None:
    args = arguments()
    device, widths = args.device, mrl.log_spaced(D)
    name = device_name(device)
    bank, queries = make_data(args.items, 0, device), make_data(args.queries, 1, device)
    peak = matrix_peak(torch.bfloat16, device, 8192 if device.type == "cuda" else 1024)
    flops = 2.0 * args.items * args.queries * D
    print(f"{name}, torch {torch.__version__}; bank {args.items} x {D}, {args.queries} queries")
    print(f"peak {peak / 1e12:.3g} TFLOP/s; all products at the peak: {flops / peak:.2f} s\n")
    nested = partial(nested_knn, bank, queries, widths)
    cases: dict[str, Callable[[], Indices]] = {
        "without the kernel": partial(nested, kernel=False),
        "plain loop": lambda: plain_loop(bank, queries, widths),
    }
    if kernel_works(device):
        cases = {"nested_knn": partial(nested, kernel=True)} | cases
    found = {case: run() for case, run in cases.items()}  # and warm
    seconds: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    for _ in range(args.rounds):
        for case, run in cases.items():
            seconds[case].append(timed(run, device))
    print("| case | s | s of kernels | at most | same neighbours, or as near |")
    print("| --- | ---: | ---: | ---: | ---: |")
    first = next(iter(found.values()))
    for case, values in seconds.items():
        wall, kernels = (statistics.median(part) for part in zip(*values, strict=True))
        right = share_as_near(bank, queries, widths, first, found[case])
        target = f"{TARGET:g}" if case == "nested_knn" else ""
        print(f"| {case} | {wall:.2f} | {kernels:.2f} | {target} | {right:.3%} |")


def make_data(rows: int, seed: int, device: torch.device) -> Tensor:
    """Float32 (rows, D): normal noise around centres that are the same for every seed."""
    generator = torch.Generator(device).manual_seed(0)
    scale = torch.arange(1, D + 1, device=device) ** -DECAY
    centres = torch.randn(CLUSTERS, D, generator=generator, device=device)
    generator.manual_seed(1 + seed)
    out = torch.empty(rows, D, device=device)
    for part in out.split(BLOCK):
        part.normal_(generator=generator).mul_(NOISE)
        cluster = torch.randint(CLUSTERS, (len(part),), generator=generator, device=device)
        part.add_(centres[cluster]).mul_(scale)
    return out


def nested_knn(bank: Tensor, queries: Tensor, widths: list[int], *, kernel: bool) -> Indices:
    with patch("mrl.search.knn.kernel_works", lambda device: kernel):
        return mrl.nested_knn(bank, queries, widths)[1][:, :, 0]


def plain_loop(bank: Tensor, queries: Tensor, widths: list[int]) -> Indices:
    found = []
    for m in widths:
        best_Q = torch.full((len(queries),), -torch.inf, device=queries.device)
        index_Q = torch.zeros_like(best_Q, dtype=torch.int64)
        for start in range(0, len(bank), BLOCK):
            x_BM = F.normalize(bank[start : start + BLOCK, :m])
            for first in range(0, len(queries), CHUNK):
                some = slice(first, first + CHUNK)
                value_Q, place_Q = (F.normalize(queries[some, :m]) @ x_BM.T).max(1)
                better_Q = value_Q > best_Q[some]
                best_Q[some] = torch.where(better_Q, value_Q, best_Q[some])
                index_Q[some] = torch.where(better_Q, place_Q + start, index_Q[some])
        found.append(index_Q)
    return torch.stack(found)


def timed(run: Callable[[], Indices], device: torch.device) -> tuple[float, float]:
    """Seconds that pass, and of the GPU's kernels (of operations on a CPU), in two runs."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    passed = time.perf_counter() - start
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as record:
        run()
        synchronize(device)
    events = record.key_averages()
    micros = (e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in events)
    return passed, sum(micros) / 1e6


def share_as_near(
    bank: Tensor, queries: Tensor, widths: list[int], a: Indices, b: Indices
) -> float:
    """How many neighbours of ``b`` are those of ``a``, or no further away (by 1e-6)."""
    wrong = 0
    for m, a_Q, b_Q in zip(widths, a, b, strict=True):
        row_P = (a_Q != b_Q).nonzero()[:, 0]
        q_PM = queries[row_P, :m].double()
        near_a, near_b = (
            F.cosine_similarity(q_PM, bank[index[row_P], :m].double()) for index in (a_Q, b_Q)
        )
        wrong += int((near_b < near_a - 1e-6).sum())
    return 1 - wrong / a.numel()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--items", type=int, default=1_281_167)
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()

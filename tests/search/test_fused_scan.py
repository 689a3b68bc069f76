"""The kernel of the scan on a GPU; without one in Triton's interpreter, and compiled for one."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from brute_force import brute_force
from torch import Tensor

import mrl
from mrl.search import knn, scan
from mrl.search.blocks import COARSE_ERROR, BankBlock, exact_columns
from mrl.search.scan_plan import ScanPlan

pytest.importorskip("triton", reason="PyTorch for NVIDIA GPUs brings Triton")
from mrl.search import fused_scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COMPILE = Path(__file__).with_name("compile_for_gpu.py")
WIDTHS = pytest.mark.parametrize(
    "widths", [[8, 16, 48, 96], [3, 5, 90], [40, 100]], ids=lambda widths: f"to{widths[-1]}"
)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small tiles; gives a list to which every start of the kernel adds its number of rows."""
    monkeypatch.setattr(fused_scan, "TILE_QUERIES", 16)
    monkeypatch.setattr(fused_scan, "TILE_ROWS", 32)
    monkeypatch.setattr(fused_scan, "_GATHER_BYTES", 2**16)
    started = []
    real = fused_scan.group_maxima

    def group_maxima(
        q: Tensor, half: Tensor, block: BankBlock, widths: list[int], members: int
    ) -> Tensor:
        started.append(len(block))
        if DEVICE.type == "cpu":  # the interpreter takes bfloat16 for integers
            assert block.half is not None
            half, block = half.float(), replace(block, half=block.half.float())
        return real(q, half, block, widths, members)

    monkeypatch.setattr(fused_scan, "group_maxima", group_maxima)
    return started


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@WIDTHS
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(("rows", "members"), [(150, 8), (37, 16), (64, 32)])
def test_values_are_those_of_separate_products(
    widths: list[int], metric: str, rows: int, members: int
) -> None:
    bank, queries = normal(rows, 110).to(DEVICE), normal(19, 110, seed=1).to(DEVICE)
    block = BankBlock.read(bank, 0, rows, widths, 1, metric, DEVICE, products=widths, bf16=True)
    q_QC = queries[:, : widths[-1]]
    top_GQH = fused_scan.group_maxima(q_QC, q_QC.bfloat16(), block, widths, members)
    groups = -(-rows // members)
    inner_QB = torch.zeros(19, rows, device=DEVICE)
    picked = normal(19, groups, seed=2).to(DEVICE) > 0.5
    for g, (lo, hi) in enumerate(pairwise([0, *widths])):
        inner_QB += q_QC[:, lo:hi] @ block.rows[:, lo:hi].T
        value_QB = torch.full((19, groups * members), -torch.inf, device=DEVICE)
        block.values(inner_QB, g, out=value_QB[:, :rows])
        value_QEH = value_QB.view(19, members, groups)
        rest = slice(int(min(exact_columns(widths, bf16=True), hi)), hi)
        size_Q = q_QC[:, rest].norm(dim=1)
        if metric == "l2":
            size_Q *= 2 * block.rows[:, rest].norm(dim=1).amax()
        error_Q1 = COARSE_ERROR * size_Q[:, None] + 1e-4
        assert ((top_GQH[g] - value_QEH.amax(1)).abs() <= error_Q1).all()
        row, group = picked.nonzero(as_tuple=True)
        found = fused_scan.values_of_groups(q_QC, block, g, hi, members, row, group)
        torch.testing.assert_close(found, value_QEH[row, :, group], rtol=1e-5, atol=1e-4)


@WIDTHS
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("k", [1, 3, 70])
def test_search_equals_brute_force(
    widths: list[int],
    metric: str,
    k: int,
    kernel: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scan, "_GUESS_FROM", 64)  # so that 70 neighbours are found by a guess
    for name in ("_BLOCK_ROWS", "_CUDA_BLOCK_ROWS"):
        monkeypatch.setattr(scan, name, 16 * k + 40)
    monkeypatch.setattr(knn, "kernel_works", lambda device: True)
    monkeypatch.setattr(knn, "choose_plan", lambda *_: ScanPlan(None, True))
    rows = 2500 if k == 70 else 300
    bank, queries = normal(rows, 110), normal(21, 110, seed=1)
    bank[rows // 2 :] = bank[: rows - rows // 2]  # ties
    bank[:21] = queries + 0.1
    scores, indices = mrl.nested_knn(bank.to(DEVICE), queries.to(DEVICE), widths, k, metric)
    wanted_scores, wanted = brute_force(bank, queries, widths, k, metric)
    assert torch.equal(indices.cpu(), wanted)
    torch.testing.assert_close(scores.cpu().double(), wanted_scores, rtol=1e-5, atol=1e-5)
    assert sum(kernel) > 0.8 * rows  # the last block may be too short for groups


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize(
    ("capability", "instruction", "kib"),
    [
        (90, "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16", 227),
        (86, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 99),
    ],
    ids=["hopper", "ampere"],
)
def test_compiles_for_a_gpu_and_multiplies_on_its_tensor_cores(
    metric: str, capability: int, instruction: str, kib: int
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(COMPILE.parents[2])
    command = [sys.executable, str(COMPILE), metric, str(capability)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert instruction in done.stdout
    stack = re.search(r"STACK:(\d+)", done.stdout)
    assert stack is not None and int(stack[1]) <= 256, "registers do not suffice"
    shared = re.search(r"shared memory: (\d+)", done.stdout)
    assert shared is not None and int(shared[1]) <= kib * 1024, "the chip has less"

"""A bank over two ranks equals the same bank in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mrl
from mrl.search import sharded_knn

ROOT = Path(__file__).parents[2]
RANK = """
import sys, torch
import torch.distributed as dist
from mrl.search import sharded_knn
dist.init_process_group("gloo")
found = []
for case in torch.load(sys.argv[1]):
    part = case.pop("parts")[dist.get_rank()]
    try:
        found.append(sharded_knn(part, *case.values()))
    except ValueError as error:
        found.append(str(error))
torch.save(found, f"{sys.argv[1]}.{dist.get_rank()}")
dist.barrier()
dist.destroy_process_group()
"""


def on_two_ranks(folder: Path, cases: list[dict[str, object]]) -> list[list[object]]:
    """What each rank gets, case by case."""
    torch.save(cases, folder / "cases")
    (folder / "rank.py").write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(folder / "rank.py"), str(folder / "cases")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"cases.{rank}") for rank in (0, 1)]


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed))


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    bank = rows(10, 0)[torch.arange(50) % 10]  # every row five times, on both ranks
    search = {"queries": rows(7, 1), "widths": [2, 8, 24], "k": 12}
    cases = [
        {"parts": [bank[:first], bank[first:]], **search, "metric": metric}
        for first in (0, 3, 25)  # rows on rank 0
        for metric in ("cosine", "l2")
    ]
    on_each_rank = on_two_ranks(tmp_path, cases)
    for case, *found in zip(cases, *on_each_rank, strict=True):
        scores, indices = mrl.nested_knn(bank, *search.values(), case["metric"])
        for found_scores, found_indices in found:
            assert torch.equal(found_indices, indices)
            torch.testing.assert_close(found_scores, scores, rtol=1e-5, atol=1e-6)


def test_a_fault_on_one_rank_ends_all(tmp_path: Path) -> None:
    bank = rows(20, 0)
    bank[15, 3] = torch.nan
    case = {"parts": [bank[:11], bank[11:]], "queries": rows(3, 1), "widths": [24]}
    for (said,) in on_two_ranks(tmp_path, [case]):
        assert "rank 1 (its first row is row 11 of the bank): bank row 4 " in said


def test_one_process_alone() -> None:
    bank, queries = rows(30, 0), rows(4, 1)
    scores, indices = sharded_knn(bank, queries, [8, 24], 3)
    wanted_scores, wanted_indices = mrl.nested_knn(bank, queries, [8, 24], 3)
    assert torch.equal(indices, wanted_indices)
    torch.testing.assert_close(scores, wanted_scores, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="k must lie in 1..30 .*over all ranks.*, got 31"):
        sharded_knn(bank, queries, [8], 31)

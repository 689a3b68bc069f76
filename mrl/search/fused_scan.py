"""The scan of a block on a GPU in one kernel: inner products never leave the chip.

In plain PyTorch the inner products of a block of queries x bank go to the GPU's memory and back at
every width, which takes longer than to compute them.  Here each program keeps those of
one tile in registers through all widths, and writes out only the largest value of each group of
bank rows.  The few groups that reach their query's bound are computed once more.

Shapes: B bank rows of a block, Q queries, C columns, G widths; a query's values are H groups of E
members, as in :mod:`mrl.search.candidates`: column ``member * H + group``.  P groups picked.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mrl.search.blocks import MOST_COLUMNS, BankBlock, exact_columns

# The fastest of a dozen on an H100; results/benchmarks/gpu.md has the others.
TILE_QUERIES, TILE_ROWS = 128, 256
FLOAT_STEP, HALF_STEP = 16, 64  # columns multiplied at once, in float32 and in bfloat16
TILES_DOWN = 8  # tiles of queries that share a tile of the bank while it is in the cache
WARPS, STAGES = 8, 3
_GATHER_BYTES = 2**28  # of picked bank rows at once


def group_maxima(
    q_QC: Tensor, half_QC: Tensor, block: BankBlock, widths: Sequence[int], members: int
) -> Tensor:
    """Largest of the filter's values in each group at each width, float32 (G, Q, H).

    Args:
        q_QC: queries in float32, for the first columns (see :func:`exact_columns`).
        half_QC: the same in bfloat16, for the rest.
        members: E, a power of two, at most ``TILE_ROWS``.
    """
    assert block.half is not None
    q_QC, half_QC = q_QC.contiguous(), half_QC.contiguous()
    num_groups = -(-len(block) // members)
    top_GQH = q_QC.new_empty(len(widths), len(q_QC), num_groups)
    exact = exact_columns(widths, bf16=True)
    tiles = triton.cdiv(len(q_QC), TILE_QUERIES), triton.cdiv(num_groups * members, TILE_ROWS)
    with torch.cuda.device_of(q_QC):  # Triton starts kernels on the current device
        _group_maxima[(tiles[0] * tiles[1],)](
            q_QC,
            half_QC,
            block.rows,
            block.half,
            block.weight.contiguous(),
            torch.tensor(widths, dtype=torch.int32, device=q_QC.device),
            top_GQH,
            len(q_QC),
            len(block),
            num_groups,
            len(widths),
            sum(m <= exact for m in widths),
            q_QC.stride(0),
            half_QC.stride(0),
            block.rows.stride(0),
            block.half.stride(0),
            IS_L2=block.metric == "l2",
            MEMBERS=members,
            TILE_Q=TILE_QUERIES,
            TILE_B=TILE_ROWS,
            FLOAT_STEP=FLOAT_STEP,
            HALF_STEP=HALF_STEP,
            TILES_DOWN=TILES_DOWN,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return top_GQH


@triton.jit
def _group_maxima(  # type: ignore[no-untyped-def]
    q32,
    q16,
    x32,
    x16,
    weight,
    widths,
    top,
    num_queries,
    num_rows,
    num_groups,
    num_widths,
    num_exact,
    q32_stride,
    q16_stride,
    x32_stride,
    x16_stride,
    IS_L2: tl.constexpr,
    MEMBERS: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_B: tl.constexpr,
    FLOAT_STEP: tl.constexpr,
    HALF_STEP: tl.constexpr,
    TILES_DOWN: tl.constexpr,
):
    GROUPS: tl.constexpr = TILE_B // MEMBERS  # of a tile
    tiles_q, tiles_b = tl.cdiv(num_queries, TILE_Q), tl.cdiv(num_groups, GROUPS)
    tile = tl.program_id(0)
    tile_q, tile_b = tl.swizzle2d(tile % tiles_q, tile // tiles_q, tiles_q, tiles_b, TILES_DOWN)
    query = (tile_q * TILE_Q + tl.arange(0, TILE_Q)).to(tl.int64)[:, None]
    group = tile_b * GROUPS + tl.arange(0, GROUPS)[None, :]
    place = tl.arange(0, TILE_B)  # group by group, so that its members are neighbours
    row_group = tile_b * GROUPS + place // MEMBERS
    row = place % MEMBERS * num_groups + row_group
    real_query, real_row = query < num_queries, (row_group < num_groups) & (row < num_rows)
    weight_at = weight + row
    top_at, real_top = top + query * num_groups + group, real_query & (group < num_groups)
    q32 += query * q32_stride
    q16 += query * q16_stride
    x32 += row.to(tl.int64)[:, None] * x32_stride
    x16 += row.to(tl.int64)[:, None] * x16_stride
    inner = tl.zeros((TILE_Q, TILE_B), tl.float32)
    start = 0
    for g in range(0, num_exact):
        end = tl.load(widths + g)
        for first in range(start, end, FLOAT_STEP):
            column = first + tl.arange(0, FLOAT_STEP)[None, :]
            q = tl.load(q32 + column, real_query & (column < end), 0.0)
            x = tl.load(x32 + column, real_row[:, None] & (column < end), 0.0)
            inner = tl.dot(q, tl.trans(x), inner, input_precision="ieee")
        best = _best_of_groups(inner, weight_at, real_row, IS_L2, TILE_Q, GROUPS, MEMBERS)
        tl.store(top_at, best, real_top)
        weight_at += num_rows
        top_at += num_queries * num_groups
        start = end
    for g in range(num_exact, num_widths):
        end = tl.load(widths + g)
        for first in range(start, end, HALF_STEP):
            column = first + tl.arange(0, HALF_STEP)[None, :]
            q = tl.load(q16 + column, real_query & (column < end), 0.0)
            x = tl.load(x16 + column, real_row[:, None] & (column < end), 0.0)
            inner = tl.dot(q, tl.trans(x), inner)
        best = _best_of_groups(inner, weight_at, real_row, IS_L2, TILE_Q, GROUPS, MEMBERS)
        tl.store(top_at, best, real_top)
        weight_at += num_rows
        top_at += num_queries * num_groups
        start = end


@triton.jit
def _best_of_groups(  # type: ignore[no-untyped-def]
    inner,
    weight_at,
    real_row,
    IS_L2: tl.constexpr,
    TILE_Q: tl.constexpr,
    GROUPS: tl.constexpr,
    MEMBERS: tl.constexpr,
):
    weight = tl.load(weight_at, real_row, 0.0)[None, :]
    value = 2.0 * inner - weight if IS_L2 else inner * weight
    value = tl.where(real_row[None, :], value, float("-inf"))
    return tl.max(tl.reshape(value, (TILE_Q, GROUPS, MEMBERS)), axis=2)


def values_of_groups(
    q_QC: Tensor, block: BankBlock, g: int, m: int, members: int, row_P: Tensor, group_P: Tensor
) -> Tensor:
    """The filter's values of picked groups at width m, number ``g``, in float32 (P, E)."""
    num_groups = -(-len(block) // members)
    column_PE = group_P[:, None] + num_groups * torch.arange(members, device=q_QC.device)
    real_PE = column_PE < len(block)
    column_PE = column_PE.clamp(max=len(block) - 1)
    inner_PE = q_QC.new_zeros(column_PE.shape)
    step = max(1, _GATHER_BYTES // (4 * members * MOST_COLUMNS))
    for start in range(0, len(row_P), step):
        some = slice(start, start + step)
        # As many columns at once as in other products, for the same rounding errors.
        for lo in range(0, m, MOST_COLUMNS):
            columns = slice(lo, min(lo + MOST_COLUMNS, m))
            x_PEC = block.rows[:, columns][column_PE[some]]
            q_PC1 = q_QC[:, columns][row_P[some]].unsqueeze(2)
            inner_PE[some] += torch.bmm(x_PEC, q_PC1)[:, :, 0]
    weight_PE = block.weight[g][column_PE]
    value_PE = 2.0 * inner_PE - weight_PE if block.metric == "l2" else inner_PE * weight_PE
    return value_PE.masked_fill_(~real_PE, -torch.inf)

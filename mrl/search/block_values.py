"""The filter's values of a block of the bank, in groups, most of which hold nothing of interest.

By one product after the other; on a GPU by one kernel for all of them (``fused_scan.py``).

Shapes: B bank rows of a block, Q queries, C columns; values (Q, E, H) are H groups of E members.
"""

import threading
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from math import ceil, inf

import torch
from torch import Tensor

from mrl.search.blocks import BankBlock, add_products, exact_columns
from mrl.search.candidates import ValuesOf, values_at

_MOST_MEMBERS = 64
# In the kernel: smaller groups would spare little memory.
_KERNEL_LEAST_MEMBERS, _KERNEL_MOST_MEMBERS = 8, 32


class BlockValues:
    """How values are computed, and each thread's arrays for it.

    Args:
        device: of queries and blocks.
        bf16: multiply wide runs of columns in bfloat16.
        kernel: multiply and compare in one step, where groups are large enough; needs Triton.
    """

    def __init__(self, device: torch.device, *, bf16: bool, kernel: bool) -> None:
        self.device, self.bf16, self.kernel = device, bf16, kernel
        self.scratch = threading.local()

    def of(
        self,
        q_QC: Tensor,
        half_QC: Tensor | None,
        block: BankBlock,
        widths: Sequence[int],
        num_groups: int,
    ) -> Iterator[tuple[Tensor, ValuesOf]]:
        """At one width after the other what :func:`mrl.search.candidates.above` wants.

        What comes at a width is of use until the next is asked for.

        Args:
            q_QC: queries in float32.
            half_QC: the same in bfloat16, if products use it.
            num_groups: at least, where the block has that many rows.
        """
        members = self._kernel_members(len(block), widths, num_groups)
        if members is not None and half_QC is not None:
            yield from _by_kernel(q_QC, half_QC, block, widths, members)
            return
        members = _members(len(block), num_groups)
        inner_QB, product_QB, value_QB = self._arrays(len(q_QC), len(block), members)
        inner_QB.zero_()
        for g, (lo, hi) in enumerate(pairwise([0, *widths])):
            add_products(inner_QB, product_QB, q_QC, half_QC, block, lo, hi)
            block.values(inner_QB, g, out=value_QB[:, : len(block)])
            value_QEH = value_QB.view(len(q_QC), members, -1)
            yield value_QEH.amax(1), partial(values_at, value_QEH)

    def bytes_of_query(self, rows: int, widths: Sequence[int], num_groups: int) -> int:
        """About how much memory a query takes with a block of so many rows."""
        members = self._kernel_members(rows, widths, num_groups)
        if members is None:
            return 12 * rows
        # A shorter block, as the last may be, can be one that is done without the kernel.
        short = 12 * min(rows, num_groups * _KERNEL_LEAST_MEMBERS)
        return max(short, 4 * len(widths) * ceil(rows / members))

    def _kernel_members(self, rows: int, widths: Sequence[int], num_groups: int) -> int | None:
        """Of each group of a block that goes through the kernel; None: this one does not."""
        members = 1 << (_members(rows, num_groups).bit_length() - 1)
        usable = self.kernel and exact_columns(widths, self.bf16) < inf
        if not usable or members < _KERNEL_LEAST_MEMBERS:
            return None
        return min(members, _KERNEL_MOST_MEMBERS)

    def _arrays(self, num_queries: int, rows: int, members: int) -> tuple[Tensor, Tensor, Tensor]:
        """This thread's arrays: two of inner products (Q, B), values (Q, E x H).

        The values are padded to whole groups, by columns that can win nothing.
        """
        mine, shape = self.scratch, (num_queries, rows, ceil(rows / members) * members)
        if getattr(mine, "shape", None) != shape:
            mine.shape = shape
            mine.inner = torch.empty(shape[:2], device=self.device)
            mine.product = torch.empty_like(mine.inner)
            mine.values = torch.full((shape[0], shape[2]), -torch.inf, device=self.device)
        return mine.inner, mine.product, mine.values


def _by_kernel(
    q_QC: Tensor, half_QC: Tensor, block: BankBlock, widths: Sequence[int], members: int
) -> Iterator[tuple[Tensor, ValuesOf]]:
    from mrl.search import fused_scan  # needs Triton

    top_GQH = fused_scan.group_maxima(q_QC, half_QC, block, widths, members)
    for g, (m, top_QH) in enumerate(zip(widths, top_GQH, strict=True)):
        yield top_QH, partial(fused_scan.values_of_groups, q_QC, block, g, m, members)


def kernel_works(device: torch.device) -> bool:
    """Whether blocks can go through :mod:`mrl.search.fused_scan` there."""
    return device.type == "cuda" and find_spec("triton") is not None


def _members(rows: int, num_groups: int) -> int:
    """Of a group of so many rows' values."""
    return max(1, min(_MOST_MEMBERS, rows // num_groups))

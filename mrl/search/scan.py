"""The passes over a bank: all widths by the filter, or a narrow one and then what it leaves over.

Shapes: B bank rows of a block, Q queries, D embedding width, G widths, K neighbours.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import ceil, inf, sqrt

import torch
from torch import Tensor

from mrl.search.block_values import BlockValues
from mrl.search.blocks import BankBlock, exact_columns
from mrl.search.candidates import CandidatePool, filter_error, relative_error
from mrl.search.checks import RowBounds
from mrl.search.pairs import Metric, prefix_norms
from mrl.search.passes import Pass
from mrl.search.refine import Stages, Survivors
from mrl.search.scales import Scale

# At most, where the memory allows it. On a GPU each step must be worth starting.
_BLOCK_ROWS, _CHUNK_QUERIES, _BATCH_QUERIES = 2048, 256, 2048
_CUDA_BLOCK_ROWS, _CUDA_CHUNK_QUERIES, _CUDA_BATCH_QUERIES = 2**16, 2**13, 2**16  # not tuned
_SAMPLE = 7  # one of so many bank rows; a prime, as classes may take turns in a bank
_GUESS_FROM = 64  # neighbours; for fewer a guess saves less than it costs
# Groups of a block's values, where a guess is the first bound; without one twice the neighbours.
_GROUPS_WITH_GUESS = 64
_NEIGHBOUR_BYTES = 34  # of one of k: value, index and weight of about twice as many; sorting
_WIDTH_BYTES = 32  # of a query at one width: norms, and distances that are of interest
_PAIR_BYTES = 64  # of a survivor, with what is computed from it


@dataclass(slots=True)
class Search:
    """One bank, and the threads that look through it.

    A block of bank rows is read once for a whole batch of queries, which the threads share.
    """

    bank: Tensor
    device: torch.device  # of the queries
    k: int
    metric: Metric
    max_bytes: int
    values: BlockValues
    bounds: RowBounds
    workers: ThreadPoolExecutor
    scale: Scale = 1.0  # of bank rows in the filter
    start: int | None = None  # the width to :meth:`refine` from; None: scan all
    bar: Callable[[int], object] = lambda rows: None

    def looks(self, each: Pass) -> int:
        """How often the bank is gone through."""
        return len(self._batches(each)) * (1 if self.start is None else 2)

    def nearest(self, each: Pass) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some queries at a time: which, and the k best of them at each width.

        Scores, float64, larger is nearer, and indices, each (G, Q, K).
        """
        first = 0
        for batch in self._batches(each):
            rows = slice(first, first := first + len(batch))
            if self.start is None:
                yield rows, *self.scan(batch, each.widths)
            else:
                yield rows, *self.refine(batch, each.widths, self.start)

    def _batches(self, each: Pass) -> tuple[Tensor, ...]:
        """Queries that go through the bank together: their candidates take 1/4 of the memory."""
        queries, widths = each.queries, each.widths
        scanned = len(widths) if self.start is None else 1 + bisect_right(widths, self.start)
        a_query = _NEIGHBOUR_BYTES * scanned * (self.k + 14) + _WIDTH_BYTES * len(widths)
        most = _CUDA_BATCH_QUERIES if self.device.type == "cuda" else _BATCH_QUERIES
        most = max(1, min(most, self.max_bytes // 4 // a_query))
        return _equal_parts(queries, -(-len(queries) // most))

    def _block_rows(self, widths: Sequence[int]) -> int:
        most = _CUDA_BLOCK_ROWS if self.device.type == "cuda" else _BLOCK_ROWS
        return max(1, min(most, self.max_bytes // 4 // (16 * widths[-1])))

    def scan(self, queries: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The k best at each width, ``(scores, indices)``, each (G, Q, K)."""
        return _joined(self._nearest(self._chunks(queries, widths), widths))

    def refine(self, queries: Tensor, widths: Sequence[int], start: int) -> tuple[Tensor, Tensor]:
        """The same: by :meth:`scan` at ``start`` and below, and beyond by what it leaves over."""
        narrow, stages = _split(widths, start)
        scanned = narrow if start in narrow else [*narrow, start]
        chunks = self._chunks(queries, scanned)
        found = self._nearest(chunks, scanned)
        survivors = self._survivors(chunks, stages, [indices[-1] for _, indices in found])
        errors = [self._error(start, [start], part.queries, part.norm_Q) for part in survivors]
        floats, halves = self._converted(chunks, start)

        def visit(i: int, block: BankBlock) -> None:
            if survivors[i].too_many:
                return
            ((top_QH, values_of),) = self.values.of(floats[i], halves[i], block, [start], 1)
            survivors[i].offer(top_QH, values_of, block, errors[i])

        # Only cosine needs the rest of the rows: their norms.
        needed = [start, *stages.ends] if self.metric == "cosine" else [start]
        self._stream(chunks, needed, visit, products=[start])
        few = iter(self.workers.map(Survivors.ranked, [s for s in survivors if not s.too_many]))
        wide = [
            self.scan(chunk, stages.widths) if s.too_many else next(few)
            for chunk, s in zip(chunks, survivors, strict=True)
        ]
        return _joined(
            tuple(torch.cat([near[: len(narrow)], far]) for near, far in zip(*both, strict=True))
            for both in zip(found, wide, strict=True)
        )

    def _chunks(self, queries: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        """The queries in equal parts, as many for each thread, to be scanned at these widths."""
        threads = self.workers._max_workers
        a_query = self.values.bytes_of_query(self._block_rows(widths), widths, 2 * self.k)
        most = _CUDA_CHUNK_QUERIES if self.device.type == "cuda" else _CHUNK_QUERIES
        most = max(1, min(most, self.max_bytes // 4 // (a_query * threads)))
        return _equal_parts(queries, -(-len(queries) // (most * threads)) * threads)

    def _converted(
        self, chunks: Sequence[Tensor], columns: int
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """The first columns in float32, and in bfloat16 if products use it."""
        floats = [self._scaled(chunk[:, :columns]).float() for chunk in chunks]
        return floats, [x.bfloat16() if self.values.bf16 else None for x in floats]

    def _nearest(
        self, chunks: Sequence[Tensor], widths: Sequence[int], *, guess: bool = True
    ) -> list[tuple[Tensor, Tensor]]:
        """The k best of each chunk at each width, ``(scores, indices)``, each (G, Q, K).

        With a guess, from a sample, of how near the k-th best is, few pairs have to be kept. Where
        it turns out to have been too near, the queries are looked up again without.
        """
        rank = _rank_in_sample(self.k)
        if not guess or self.k < _GUESS_FROM or len(self.bank) < 2 * _SAMPLE * rank:
            return [found for found, _ in self.workers.map(_ranked, self._pools(chunks, widths))]
        sample = replace(self, bank=self.bank[::_SAMPLE], k=rank, bar=lambda rows: None)
        pools = sample._pools(chunks, widths)
        guesses = self.workers.map(lambda of_chunk: [pool.kth_best() for pool in of_chunk], pools)
        pools = self._pools(chunks, widths, list(guesses))
        found, missed = zip(*self.workers.map(_ranked, pools), strict=True)
        if any(map(torch.any, missed)):
            self._look_up_again(chunks, widths, found, missed)
        return list(found)

    def _look_up_again(
        self,
        chunks: Sequence[Tensor],
        widths: Sequence[int],
        found: Sequence[tuple[Tensor, Tensor]],
        missed: Sequence[Tensor],
    ) -> None:
        """Put right what was found for the queries ``missed`` (Q,) of each chunk, in place."""
        unlucky = torch.cat([c[rows] for c, rows in zip(chunks, missed, strict=True)])
        again = replace(self, bar=lambda rows: None)
        parts = again._nearest(again._chunks(unlucky, widths), widths, guess=False)
        right = [part.split([int(rows.sum()) for rows in missed], 1) for part in _joined(parts)]
        for of_chunk, rows, *better in zip(found, missed, *right, strict=True):
            for values, new in zip(of_chunk, better, strict=True):
                values[:, rows] = new

    def _pools(
        self,
        chunks: Sequence[Tensor],
        widths: Sequence[int],
        guesses: Sequence[Sequence[Tensor | None]] | None = None,
    ) -> list[list[CandidatePool]]:
        """The candidates of each chunk at each width."""
        guessed = guesses is not None
        guesses = guesses or [[None] * len(widths)] * len(chunks)
        pools = list(
            self.workers.map(lambda *each: self._empty_pools(widths, *each), chunks, guesses)
        )
        floats, halves = self._converted(chunks, widths[-1])

        # Without a guess the maxima of k groups are the first bound.
        num_groups = min(2 * self.k, _GROUPS_WITH_GUESS) if guessed else 2 * self.k

        def visit(i: int, block: BankBlock) -> None:
            found = self.values.of(floats[i], halves[i], block, widths, num_groups)
            for g, (pool, (top_QH, values_of)) in enumerate(zip(pools[i], found, strict=True)):
                pool.offer(top_QH, values_of, block, g)

        self._stream(chunks, widths, visit, products=widths)
        return pools

    def _empty_pools(
        self, widths: Sequence[int], chunk: Tensor, guesses: Sequence[Tensor | None]
    ) -> list[CandidatePool]:
        norm_QG = prefix_norms(self._scaled(chunk), widths)
        precise_to = exact_columns(widths, self.values.bf16) if self.metric == "cosine" else 0
        return [
            CandidatePool(
                self.bank,
                chunk,
                m,
                self.k,
                self.metric,
                norm_QG[:, g],
                self._error(m, widths, chunk, norm_QG[:, g]),
                relative_error(m, widths) if m <= precise_to else inf,
                guesses[g],
                self.scale or 1.0,
            )
            for g, m in enumerate(widths)
        ]

    def _scaled(self, queries: Tensor) -> Tensor:
        """As the filter takes them; those with a scale of their own come scaled already."""
        return queries if self.scale in (None, 1.0) else queries.double() * self.scale

    def _error(self, m: int, widths: Sequence[int], queries: Tensor, norm_Q: Tensor) -> Tensor:
        exact = exact_columns(widths, self.values.bf16)
        return filter_error(m, widths, exact, queries, norm_Q, self.bounds, self.metric)

    def _survivors(
        self, chunks: Sequence[Tensor], stages: Stages, seeds: Sequence[Tensor]
    ) -> list[Survivors]:
        max_pairs = self.max_bytes // 2 // _PAIR_BYTES // len(chunks)

        def start(chunk: Tensor, seeds_QK: Tensor) -> Survivors:
            return Survivors(self.bank, chunk, stages, self.k, self.metric, seeds_QK, max_pairs)

        return list(self.workers.map(start, chunks, seeds))

    def _stream(
        self,
        chunks: Sequence[Tensor],
        widths: Sequence[int],
        visit: Callable[[int, BankBlock], None],
        *,
        products: Sequence[int],
    ) -> None:
        """``visit(number of the chunk, block)`` for all chunks and one block after the other."""
        size = self._block_rows(widths)

        def read(start: int) -> BankBlock:
            return BankBlock.read(
                self.bank,
                start,
                start + size,
                widths,
                self.k,
                self.metric,
                self.device,
                products=products,
                bf16=self.values.bf16,
                scale=self.scale,
            )

        starts = range(0, len(self.bank), size)
        following = self.workers.submit(read, 0)
        for start in starts:
            block = following.result()
            if start + size < len(self.bank):
                following = self.workers.submit(read, start + size)  # while this one is searched
            for _ in self.workers.map(visit, range(len(chunks)), [block] * len(chunks)):
                pass
            self.bar(len(block))


def _equal_parts(queries: Tensor, parts: int) -> tuple[Tensor, ...]:
    return queries.split(-(-len(queries) // parts))


def _rank_in_sample(k: int) -> int:
    """How far down the sample's list the k-th best of the whole bank hardly ever lies further up.

    About k / _SAMPLE of the k best are in the sample, give or take the root; four of them to spare.
    """
    return ceil((2 + sqrt(4 + k / _SAMPLE)) ** 2)


def _split(widths: Sequence[int], start: int) -> tuple[list[int], Stages]:
    return [m for m in widths if m <= start], Stages(start, [m for m in widths if m > start])


def _ranked(pools: Sequence[CandidatePool]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """``(scores, indices)``, each (G, Q, K), and which queries (Q,) were missed at any width."""
    scores, indices, missed = zip(*(pool.ranked() for pool in pools), strict=True)
    return (torch.stack(scores), torch.stack(indices)), torch.stack(missed).any(0)


def _joined(parts: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    scores, indices = zip(*parts, strict=True)
    return torch.cat(scores, 1), torch.cat(indices, 1)

"""The first stage of a staged search: an index over one prefix of a bank, built once and kept.

Shapes: B bank, Q queries, D embedding width, K neighbours.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mrl.nesting import check_granularities
from mrl.search.checks import RowBounds, check_rows
from mrl.search.faiss_index import (
    SEARCH_OPTIONS,
    build_faiss,
    import_faiss,
    options_of,
    read_faiss,
    search_faiss,
    set_search_options,
)
from mrl.search.index_files import bank_hash, file_hash, new_folder, read_manifest, write_manifest
from mrl.search.inputs import Matrix, as_matrix, check_count, check_metric
from mrl.search.knn import nested_knn
from mrl.search.pairs import Metric
from mrl.search.scales import in_float32

Kind = Literal["exact", "Flat", "HNSW32", "IVF", "IVFPQ", "OPQ"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LEAST_SQUARE, _MOST_SQUARE = 1e-30, 1e37  # of norms; sums of float32 squares stay in its range
_COPY_ROWS = 4096


@dataclass(eq=False, slots=True, kw_only=True)
class PrefixIndex:
    """Finds the nearest items by the first ``dim`` columns; made by ``build`` or ``load``."""

    kind: Kind
    dim: int
    metric: Metric
    num_items: int
    embed_dim: int
    bank_hash: str
    options: dict[str, int]
    seed: int
    content: Any = field(repr=False)  # kind "exact": the prefixes, float32 (B, dim); else FAISS's

    @classmethod
    def build(
        cls,
        bank: Matrix,
        dim: int,
        kind: Kind = "exact",
        metric: Metric = "cosine",
        *,
        seed: int = 0,
        allow_zero: bool = False,
        **options: int,
    ) -> "PrefixIndex":
        """Index the first ``dim`` columns of the bank, cut and then (for cosine) normalised.

        Kinds: "exact" keeps a float32 copy of the prefixes and scans it with ``nested_knn``; the
        others are FAISS's and need faiss-cpu. "Flat" scans, too. "HNSW32" is a graph (options
        ``ef_construction``, ``ef_search``), "IVF" scans the nearest ``nprobe`` of ``nlist`` lists,
        "IVFPQ" does so on codes of ``code_bytes`` bytes per item, "OPQ" on codes of rotated
        prefixes, all of them or (with ``nlist``) in lists. What these three learn, they learn from
        ``train_size`` items. Scores of codes are estimates.

        Args:
            bank: (B, D), tensor or numpy array; read in blocks and not kept, a memory map is never
                loaded. What an index takes of memory is its own size and some 64 MiB, and for kinds
                that learn ``train_size`` float32 prefixes.
            seed: of the training sample, the clustering and the graph. With more than one thread
                FAISS builds graphs that differ from run to run.
            allow_zero: for cosine, take all-zero prefixes, which score 0 to every query.

        Raises:
            ValueError: for a width, kind, metric or options that do not fit the bank; for NaN,
                infinities or all-zero prefixes, naming the row; for l2, if the rows are so short or
                so long that float32 cannot hold what is kept. All before anything is built.
            TypeError: if the bank is no floating-point array.
            ImportError: if FAISS is needed and missing.
        """
        bank = as_matrix("bank", bank)
        (dim,) = check_granularities([dim], bank.shape[1])
        check_metric(metric)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if kind != "exact":
            import_faiss()
        options = options_of(kind, len(bank), dim, options)
        prefixes = bank[:, :dim]
        bounds = check_rows("bank", bank, [dim], nonzero=metric == "cosine" and not allow_zero)
        _check_squares("bank", prefixes, bounds, kind, metric)
        if kind == "exact":
            content = _kept(prefixes, bounds, metric)
        else:
            content = build_faiss(prefixes, kind, metric, options, seed)
        return cls(
            kind=kind,
            dim=dim,
            metric=metric,
            num_items=len(bank),
            embed_dim=bank.shape[1],
            bank_hash=bank_hash(bank),
            options=options,
            seed=seed,
            content=content,
        )

    def search(
        self, queries: Matrix, k: int, *, allow_zero: bool = False, progress: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest items: scores float32 and indices int64, each (Q, k), best first.

        Args:
            queries: (Q, D), or (Q, dim) if they are cut already; not modified.
            k: 1..B. Kinds with lists may find fewer: the rest is index -1, with score -inf, or inf
                for "l2".
            allow_zero: for cosine, score all-zero queries 0 instead of refusing them.
            progress: show a progress bar (kind "exact").

        Raises:
            ValueError, TypeError: see :meth:`build`.
        """
        queries = as_matrix("queries", queries)
        if queries.shape[1] not in (self.dim, self.embed_dim):
            raise ValueError(
                f"queries have width {queries.shape[1]}, but the index is of the first {self.dim} "
                f"of {self.embed_dim} columns: give either"
            )
        check_count("k", k, self.num_items, "the items of the index")
        queries = queries[:, : self.dim]
        bounds = check_rows(
            "queries", queries, [self.dim], nonzero=self.metric == "cosine" and not allow_zero
        )
        _check_squares("queries", queries, bounds, self.kind, self.metric)
        if self.kind != "exact":
            return search_faiss(self.content, queries, k, self.metric)
        # Zero prefixes were refused above, or are wanted.
        options = {"allow_zero": True, "progress": progress}
        scores, indices = nested_knn(
            self.content,
            _kept(queries, bounds, self.metric).to(self.content.device),
            [self.dim],
            k,
            self.metric,
            **options,
        )
        return scores[0].to(queries.device), indices[0].to(queries.device)

    def tune(self, **options: int) -> None:
        """Change ``ef_search`` (HNSW32) or ``nprobe`` (kinds with lists) of a built index.

        Raises:
            ValueError: for another option, or one that this kind does not have.
        """
        for name, value in options.items():
            if name not in SEARCH_OPTIONS or name not in self.options:
                raise ValueError(f"an index of kind {self.kind!r} has no {name} to tune")
            largest = self.options["nlist"] if name == "nprobe" else self.num_items
            check_count(name, value, largest, "the lists" if name == "nprobe" else "the items")
        set_search_options(self.content, options)
        self.options |= options

    def check_fits(self, bank: Tensor, dim: int, metric: Metric) -> None:
        """Refuse to serve a search at another width or metric, or of a bank of another shape.

        Raises:
            ValueError: with what differs. That the bank's bytes are the same is checked by ``load``
                only: it takes reading them all.
        """
        facts = [
            ("is of width", self.dim, dim),
            ("has the metric", self.metric, metric),
            ("is of a bank of items", self.num_items, len(bank)),
            ("is of a bank of width", self.embed_dim, bank.shape[1]),
        ]
        for what, mine, wanted in facts:
            if mine != wanted:
                raise ValueError(f"the index {what} {mine}, but the search wants {wanted}")

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index and its manifest.json to ``folder``, which then is whole or not there.

        An index that was saved there before is replaced.

        Raises:
            FileExistsError: if something else stands there.
        """
        with new_folder(Path(folder)) as temporary:
            path = temporary / _file_of(self.kind)
            if self.kind == "exact":
                np.save(path, self.content.cpu().numpy())
            else:
                import_faiss().write_index(self.content, str(path))
            facts = {name: getattr(self, name) for name in _facts()}
            facts["faiss"] = None if self.kind == "exact" else import_faiss().__version__
            write_manifest(temporary, {**facts, "file_hash": file_hash(path)})

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        bank: Matrix | None = None,
        *,
        dim: int | None = None,
        metric: Metric | None = None,
    ) -> "PrefixIndex":
        """Read a saved index; on the CPU.

        Args:
            bank, dim, metric: what the index has to be of, where given. A bank is read through once
                to compare its hash.

        Raises:
            FileNotFoundError: if no index is there.
            ValueError: if it is of another bank, width or metric, or damaged.
            ImportError: if FAISS is needed and missing.
        """
        folder = Path(folder)
        facts = read_manifest(folder)
        _check_facts(folder, facts)
        index = cls(**{name: facts[name] for name in _facts()}, content=None)
        index._check_wanted(folder, bank, dim, metric)
        path = folder / _file_of(index.kind)
        if not path.is_file() or file_hash(path) != facts["file_hash"]:
            raise ValueError(f"{path} is damaged or missing: build the index again")
        num_items, dim = index.num_items, index.dim
        if index.kind == "exact":
            index.content = _read_prefixes(path, num_items, dim)
        else:
            index.content = read_faiss(
                path, num_items, dim, index.kind, index.metric, index.options
            )
        return index

    def _check_wanted(
        self, folder: Path, bank: Matrix | None, dim: int | None, metric: Metric | None
    ) -> None:
        for name, wanted in (("dim", dim), ("metric", metric)):
            mine = getattr(self, name)
            if wanted is not None and wanted != mine:
                raise ValueError(f"{folder} is an index with {name} {mine}, not {wanted}")
        if bank is None:
            return
        bank = as_matrix("bank", bank)
        self.check_fits(bank, self.dim, self.metric)
        if bank_hash(bank) != self.bank_hash:
            raise ValueError(
                f"{folder} is an index of another bank: this one has the same shape but other "
                f"values or another type ({bank.dtype})"
            )


def _kept(x_NM: Tensor, bounds: RowBounds, metric: Metric) -> Tensor:
    """A copy of prefixes in float32; for cosine at other scales where float32 ends."""
    beyond = metric == "cosine" and x_NM.dtype == torch.float64 and bounds.misfits
    copy = x_NM.new_empty(x_NM.shape, dtype=torch.float32)
    for start in range(0, len(x_NM), _COPY_ROWS):
        rows = slice(start, start + _COPY_ROWS)
        copy[rows] = in_float32(x_NM[rows], None if beyond else 1.0, x_NM.device)
    return copy


def _check_squares(name: str, x_NM: Tensor, bounds: RowBounds, kind: Kind, metric: Metric) -> None:
    """Refuse what an index for l2 cannot hold; only "exact" searches float32 rows at any scale."""
    if metric == "cosine" or (kind == "exact" and x_NM.dtype != torch.float64):
        return
    largest = bounds.largest(x_NM.shape[1])
    too_long = not largest <= _MOST_SQUARE
    too_short = name == "bank" and largest < _LEAST_SQUARE and bool(x_NM.any())
    if too_long or too_short:
        raise ValueError(
            f"the longest row of {name} is too {'long' if too_long else 'short'} for squared "
            f"distances in float32, in which an index of kind {kind!r} works: multiply bank and "
            f"queries by one number"
        )


def _facts() -> list[str]:
    """What the manifest holds, besides what the files are."""
    return [each.name for each in fields(PrefixIndex) if each.name != "content"]


def _check_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a manifest that another program wrote, be its checksum right."""
    sizes = [facts.get(name) for name in ("dim", "num_items", "embed_dim", "seed")]
    whole = all(type(size) is int for size in sizes) and isinstance(facts.get("options"), dict)
    if not whole or facts.get("kind") not in KINDS or not {*_facts(), "file_hash"} <= facts.keys():
        raise ValueError(f"{folder} is damaged: its manifest describes no index")


def _read_prefixes(path: Path, num_items: int, dim: int) -> Tensor:
    try:
        prefixes = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if prefixes.shape != (num_items, dim) or prefixes.dtype != np.float32:
        raise ValueError(
            f"{path} holds {prefixes.dtype} {prefixes.shape}, not float32 {(num_items, dim)}: "
            "build the index again"
        )
    return torch.from_numpy(prefixes)


def _file_of(kind: str) -> str:
    return "prefixes.npy" if kind == "exact" else "index.faiss"

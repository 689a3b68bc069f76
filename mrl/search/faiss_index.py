"""The FAISS kinds of a prefix index: their options, training, and searches in our conventions.

Shapes: N items, Q queries, M prefix width, K neighbours.
"""

import importlib
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrl.nesting import unit
from mrl.search.pairs import Metric

FAISS_KINDS = ("Flat", "HNSW32", "IVF", "IVFPQ", "OPQ")
# Options that may be changed after building, and FAISS's names of them.
SEARCH_OPTIONS = {"ef_search": "efSearch", "nprobe": "nprobe"}
_CENTROIDS = 256  # of each sub-vector of a code: one byte
_ENOUGH = 39  # items per centroid, below which FAISS warns
_ADD_ROWS = 2**16
_ADD_BYTES = 16 * 2**20  # of float64; some copies of it are made on the way


def import_faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(
            "an index of this kind needs FAISS: pip install faiss-cpu (kind='exact' does not)"
        ) from error


def options_of(kind: str, num_items: int, dim: int, given: Mapping[str, int]) -> dict[str, int]:
    """All options of an index of ``kind``: those given, and defaults that fit the bank.

    Raises:
        ValueError: for options that the kind does not have, or that do not fit.
    """
    options: dict[str, int] = {}
    if kind == "HNSW32":
        options = {"ef_construction": 40, "ef_search": 16}  # FAISS's own
    if kind in ("IVF", "IVFPQ", "OPQ"):
        # Four times the root is FAISS's advice for up to a million items.
        fitting = max(1, min(int(4 * math.sqrt(num_items)), num_items // _ENOUGH))
        nlist = given.get("nlist", 0 if kind == "OPQ" else fitting)
        options = {"nlist": nlist}
        if nlist:
            options["nprobe"] = max(1, nlist // 16)
        if kind != "IVF":
            options["code_bytes"] = max(m for m in range(1, 65) if dim % m == 0 and m <= dim)
        options["train_size"] = min(num_items, max(20_000, 40 * nlist))
    unknown = sorted(given.keys() - options.keys())
    if unknown:
        raise ValueError(
            f"kind {kind!r} has no option {', '.join(unknown)}; it has "
            f"{', '.join(sorted(options)) or 'none'}"
        )
    options |= given
    for name, value in options.items():
        least = 0 if (kind, name) == ("OPQ", "nlist") else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if "train_size" in options:
        _check_training(kind, num_items, dim, options)
    return options


def _check_training(kind: str, num_items: int, dim: int, options: Mapping[str, int]) -> None:
    size, centroids = options["train_size"], options["nlist"]
    if "code_bytes" in options:
        centroids = max(centroids, _CENTROIDS)
        if dim % options["code_bytes"]:
            raise ValueError(
                f"code_bytes must divide the width {dim}, as each byte stands for equally many "
                f"columns, got {options['code_bytes']}"
            )
    if size > num_items:
        raise ValueError(f"train_size {size} exceeds the bank's {num_items} items")
    if size < centroids:
        raise ValueError(
            f"kind {kind!r} learns {centroids} centroids and needs as many items to learn from, "
            f"got {size} of the bank's {num_items}: take kind 'exact' or 'HNSW32', or fewer lists"
        )
    if options.get("nprobe", 0) > max(1, options["nlist"]):
        raise ValueError(f"nprobe {options['nprobe']} exceeds nlist {options['nlist']}")
    if size < _ENOUGH * centroids:
        warnings.warn(
            f"{kind} learns {centroids} centroids from {size} items; FAISS advises "
            f"{_ENOUGH * centroids} or more",
            stacklevel=4,  # where PrefixIndex.build was called
        )


def build_faiss(
    bank_NM: Tensor, kind: str, metric: Metric, options: Mapping[str, int], seed: int
) -> Any:
    """A trained FAISS index of all rows, which are read block by block."""
    faiss = import_faiss()
    num_items, dim = bank_NM.shape
    index = _untrained(faiss, dim, kind, metric, options)
    _prepare(faiss, index, kind, options, seed)
    set_search_options(index, options)
    with threads_of_torch(faiss):
        if "train_size" in options:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(num_items, generator=generator)[: options["train_size"]]
            rows = order.sort().values.to(bank_NM.device)
            index.train(to_faiss(bank_NM.index_select(0, rows), metric))
        for block in bank_NM.split(max(1, min(_ADD_ROWS, _ADD_BYTES // (8 * dim)))):
            index.add(to_faiss(block, metric))
    return index


def read_faiss(
    path: Path, num_items: int, dim: int, kind: str, metric: Metric, options: Mapping[str, int]
) -> Any:
    """The index in a file.

    Raises:
        ValueError: if it holds none, or one that is not as described.
    """
    faiss = import_faiss()
    try:
        index = faiss.read_index(str(path))
        wanted = _untrained(faiss, dim, kind, metric, options)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(index, type(wanted)):
        names = f"{type(index).__name__}, not an {type(wanted).__name__}"
        raise ValueError(f"{path} is an {names}: build the index again")
    for what, mine, right in (
        ("width", index.d, dim),
        ("items", index.ntotal, num_items),
        ("FAISS's metric", index.metric_type, wanted.metric_type),
    ):
        if mine != right:
            raise ValueError(f"{path} is of {what} {mine}, not {right}: build the index again")
    return index


def _untrained(faiss: Any, dim: int, kind: str, metric: Metric, options: Mapping[str, int]) -> Any:
    inner_product = metric == "cosine"
    measure = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    return faiss.index_factory(dim, _factory(kind, options), measure)


def _factory(kind: str, options: Mapping[str, int]) -> str:
    """FAISS's description of the index."""
    code, lists = options.get("code_bytes"), options.get("nlist")
    match kind:
        case "IVF":
            return f"IVF{lists},Flat"
        case "IVFPQ":
            return f"IVF{lists},PQ{code}x8"
        case "OPQ":
            return f"OPQ{code},IVF{lists},PQ{code}x8" if lists else f"OPQ{code},PQ{code}x8"
        case _:
            return kind


def _prepare(faiss: Any, index: Any, kind: str, options: Mapping[str, int], seed: int) -> None:
    """Seed all that is drawn, and leave out what costs time and is not used."""
    if kind == "HNSW32":
        index.hnsw.rng = faiss.RandomGenerator(seed)
        index.hnsw.efConstruction = options["ef_construction"]
    if "train_size" not in options:
        return
    inner = index
    if kind == "OPQ":
        inner = faiss.downcast_index(index.index)
        rotation = faiss.downcast_VectorTransform(index.chain.at(0))
        rotation.pq = faiss.ProductQuantizer(rotation.d_out, options["code_bytes"], 8)
        _seed_clustering(rotation.pq.cp, seed)
    if kind != "IVF":
        # An order of the centroids for searches that we do not offer: over a second per sub-vector.
        inner.do_polysemous_training = False
        _seed_clustering(inner.pq.cp, seed)
    if options["nlist"]:
        _seed_clustering(inner.cp, seed)


def _seed_clustering(parameters: Any, seed: int) -> None:
    parameters.seed = seed
    parameters.min_points_per_centroid = 1  # else it warns for every sub-vector, as we did once


def set_search_options(index: Any, options: Mapping[str, int]) -> None:
    """Set ``ef_search`` or ``nprobe``, where they are among the options."""
    space = import_faiss().ParameterSpace()
    for name, faiss_name in SEARCH_OPTIONS.items():
        if name in options:
            space.set_index_parameter(index, faiss_name, options[name])


def search_faiss(index: Any, queries_QM: Tensor, k: int, metric: Metric) -> tuple[Tensor, Tensor]:
    """Scores and indices (Q, K) as nested_knn's; where FAISS finds fewer, -1 with the worst score.

    FAISS computes in float32, and orders equal scores as it happens.
    """
    with threads_of_torch(import_faiss()):
        scores, indices = map(torch.from_numpy, index.search(to_faiss(queries_QM, metric), k))
    scores.masked_fill_(indices < 0, -torch.inf if metric == "cosine" else torch.inf)
    return scores.to(queries_QM.device), indices.to(queries_QM.device)


def to_faiss(x_NM: Tensor, metric: Metric) -> np.ndarray:
    """Rows as FAISS takes them: float32, for cosine of length 1 (zero rows stay zero)."""
    if metric == "cosine":
        x_NM = unit(x_NM.double())
    return x_NM.float().contiguous().cpu().numpy()


@contextmanager
def threads_of_torch(faiss: Any) -> Iterator[None]:
    """FAISS on as many threads as torch, so that one setting holds for all searches."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)

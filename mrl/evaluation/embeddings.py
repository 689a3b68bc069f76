"""Judge embeddings that were made elsewhere: of any model, of text as well as of images.

Shapes: N items, Q queries, D embedding width.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mrl.distributed import pick_device
from mrl.evaluation.array_files import read_embeddings, read_labels
from mrl.evaluation.contract import Features, Widths
from mrl.evaluation.evaluators import EVALUATORS, Judged, measure, names_asked
from mrl.evaluation.labels import numbered
from mrl.evaluation.rows import ROWS_NAME, Row
from mrl.evaluation.twins import num_in_bank, num_twins, same_items
from mrl.nesting import check_granularities, log_spaced

if TYPE_CHECKING:
    from mrl.config import EvalConfig, EvalsConfig

_SMALLEST = 8  # width that halving stops at


def evaluate_embeddings(cfg: "EvalConfig") -> list[Row]:
    """Judge ``cfg.embeddings`` by the evaluators in ``cfg.evals``; adds to the rows in ``cfg.out``.

    Without ``cfg.query_embeddings`` the items of the bank are the queries, each sought among the
    others.

    Raises:
        ValueError: for files that cannot be used or do not fit each other, widths above that of the
            embeddings, missing labels, or settings that do not fit.
        OSError: for files that are not there, or rows that cannot be written.
    """
    assert cfg.embeddings is not None and cfg.out is not None
    bank, queries = load_features(cfg)
    names = _names_that_apply(cfg.evals, labelled=bank.labelled)
    head = Widths(bank.z.shape[1], widths_of(bank.z.shape[1], cfg.widths))
    device = pick_device(cfg.device)
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    name = cfg.name or Path(cfg.embeddings).stem
    judged = Judged(
        run="/".join(out.resolve().parts[-2:]),
        experiment=name,
        method=name,
        seed=0,
        commit="unknown",
        dataset=cfg.dataset,
        split="test",
    )
    bank, queries = bank.to(device), queries.to(device)
    return measure(names, bank, queries, head, cfg.evals, judged, out / ROWS_NAME)


def load_features(cfg: "EvalConfig") -> tuple[Features, Features]:
    """Bank and queries of ``cfg``, checked against each other."""
    assert cfg.embeddings is not None
    z_ND, names_N = _read_set("", cfg.embeddings, cfg.labels)
    if cfg.query_embeddings is None:
        bank = Features(z_ND, numbered([names_N], [len(z_ND)])[0])
        if count := num_twins(z_ND):
            print(f"note: {count} of {len(bank)} items are in the bank twice and find their twins")
        return bank, _own_queries(bank, cfg.num_queries, cfg.seed)
    z_QD, names_Q = _read_set("query_", cfg.query_embeddings, cfg.query_labels)
    if z_QD.shape[1] != z_ND.shape[1] or z_QD.dtype != z_ND.dtype:
        raise ValueError(
            f"embeddings are {z_ND.shape[1]} numbers of {z_ND.dtype}, query_embeddings "
            f"{z_QD.shape[1]} of {z_QD.dtype}: both must come from one model, in one type"
        )
    if (names_N is None) != (names_Q is None):
        lacks, has = ("", "query_") if names_N is None else ("query_", "")
        raise ValueError(f"{has}labels are given and {lacks}labels=FILE are missing: give both")
    labels_N, labels_Q = numbered([names_N, names_Q], [len(z_ND), len(z_QD)])
    return _apart(Features(z_ND, labels_N), Features(z_QD, labels_Q))


def _apart(bank: Features, queries: Features) -> tuple[Features, Features]:
    """Bank and queries, where the queries know their places if they are the bank itself.

    Raises:
        ValueError: if no query's label is in the bank.
    """
    if bank.labelled and not bool(torch.isin(queries.labels, bank.labels).any()):
        raise ValueError(
            "labels and query_labels have no class in common, so no neighbour could be right"
        )
    if same_items(bank.z, queries.z):
        print("note: query_embeddings are the bank itself: each item is sought among the others")
        return bank, replace(_own_queries(bank, None, 0), z=queries.z, labels=queries.labels)
    if count := num_in_bank(bank.z, queries.z):
        print(
            f"note: {count} of {len(queries)} queries are items of the bank, too, and find "
            "themselves: take them out of one of the two files"
        )
    return bank, queries


def widths_of(embed_dim: int, asked: list[int] | None) -> list[int]:
    """The prefix widths to judge: those ``asked`` for, or halvings of ``embed_dim``."""
    if asked is not None:
        return check_granularities(asked, embed_dim)
    widths = log_spaced(embed_dim, min(_SMALLEST, embed_dim))
    if len(widths) == 1 and embed_dim > _SMALLEST:
        raise ValueError(
            f"halving the width {embed_dim} gives no whole number of {_SMALLEST} or more: say "
            f"which prefixes to judge, 'widths=[...,{embed_dim}]'"
        )
    return widths


def _names_that_apply(evals: "EvalsConfig", *, labelled: bool) -> list[str]:
    """The evaluators asked for, without those of the default that lack something.

    Raises:
        ValueError: if one that was named lacks something.
    """
    names = names_asked(evals)
    lacking = {name: "a model" for name in names if EVALUATORS[name].needs_head}
    if not labelled:
        for name in names:
            if EVALUATORS[name].needs_labels:
                lacking.setdefault(name, "labels=FILE")
    if evals.by_default:
        for name, what in lacking.items():
            print(f"{name} is left out: it needs {what}")
        return [name for name in names if name not in lacking]
    for what, cure in (
        ("a model", "embeddings=FILE comes without one"),
        ("labels=FILE", "labels=FILE is missing"),
    ):
        if needing := [name for name in names if lacking.get(name) == what]:
            raise ValueError(f"{cure}: {', '.join(needing)} cannot do without")
    return names


def _read_set(prefix: str, embeddings: str, labels: str | None) -> tuple[Tensor, np.ndarray | None]:
    """Embeddings and, if there are any, labels of the bank ("") or of the queries ("query_")."""
    path = Path(embeddings).expanduser()
    z_ND, names_N = read_embeddings(path, with_labels=labels is None)
    if labels is not None:
        names_N = read_labels(Path(labels).expanduser())
    if names_N is not None and len(names_N) != len(z_ND):
        raise ValueError(
            f"{len(z_ND)} {prefix}embeddings ({embeddings}) and {len(names_N)} {prefix}labels "
            f"({labels}): one label for each is needed"
        )
    return z_ND, names_N


def _own_queries(bank: Features, count: int | None, seed: int) -> Features:
    """All items of the bank, or ``count`` drawn by ``seed``, that know their place in it."""
    if len(bank) < 2:
        raise ValueError(
            "a bank of one item has no other item to find: give others as query_embeddings=FILE"
        )
    if count is None:
        return Features(bank.z, bank.labels, ids=torch.arange(len(bank)))
    if count > len(bank):
        raise ValueError(f"num_queries={count} is more than the {len(bank)} items of the bank")
    generator = torch.Generator().manual_seed(seed)
    ids_Q = torch.randperm(len(bank), generator=generator)[:count].sort().values
    return Features(bank.z[ids_Q], bank.labels[ids_Q], ids=ids_Q)

"""Encode a split once, at full width, and keep the embeddings on disk by content.

The folder of a cache entry is named after everything that the embeddings depend on: a changed
checkpoint, data set, split or transform is another entry, and an old one is never mistaken for it.
While an entry is being made its folder is called ``.partial-NAME``: an interrupted extraction goes
on from there, one process (or one set of ranks) at a time.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mrl.data import Loader
from mrl.distributed import Ranks, gather_objects
from mrl.evaluation.contract import Features
from mrl.evaluation.encode import Batch, encoded
from mrl.evaluation.feature_files import WRITTEN, FeatureFiles, block_size
from mrl.evaluation.row_file import locked
from mrl.model import MRLModel
from mrl.progress import Bar, progress


def extract(
    model: MRLModel,
    load: Callable[[range, int], Loader],
    manifest: Mapping[str, Any],
    folder: Path,
    *,
    batch_size: int,
    device: torch.device,
    ranks: Ranks,
    may_skip: bool = False,
) -> Features:
    """The embeddings that ``manifest`` describes: from the cache, or encoded now and put there.

    Under several ranks all of them call this; each encodes whole blocks of images, in one run of
    about the same length as the others', and every image is encoded by exactly one.  Memory is
    bounded: a block (``MAX_BLOCK`` images) at a time, and what is returned is mapped, not read.

    Args:
        load: ``load(rows, batch_size)`` gives those images of the data set in order, without
            augmentation, as one rank's loader.
        folder: the cache; entries are sub-folders with manifest.json and the files of
            :class:`FeatureFiles`.
        batch_size: images encoded at once by each rank; fewer where a started entry demands it.
        may_skip: whether the loader may leave out images that it cannot decode.

    Raises:
        ValueError: if the model gives NaN or infinite embeddings, or such that float16 cannot hold.
        OSError: if the entry cannot be written; what was written before stays.
    """
    text = json.dumps(manifest, sort_keys=True, indent=1)
    entry = folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def agree(act: Callable[[], Any]) -> Any:
        return gather_objects(act() if ranks.is_main else None)[0]

    folder.mkdir(parents=True, exist_ok=True)
    with locked(entry.with_name(f".lock-{entry.name}"), agree):
        todo = agree(lambda: _open(entry, text, batch_size))
        if todo:
            first, last = (len(todo) * r // ranks.world_size for r in (ranks.rank, ranks.rank + 1))
            files = FeatureFiles(_partial(entry))
            model = model.to(device).eval()
            with _bar(manifest, files, todo[first:last], ranks) as bar:
                for run in _consecutive(todo[first:last]):
                    _encode(model, load, files, run, batch_size, device, may_skip, bar)
        gather_objects(None)  # every rank has written its blocks
        agree(lambda: _finish(entry) if todo else None)
    z_ND, labels_N = FeatureFiles(entry).maps()
    return Features(torch.from_numpy(z_ND), torch.from_numpy(labels_N))


def _partial(entry: Path) -> Path:
    return entry.with_name(f".partial-{entry.name}")


def _open(entry: Path, manifest: str, batch_size: int) -> list[int]:
    """The blocks to encode into the partial entry; none if the entry is complete and undamaged."""
    if (todo := _unfinished(entry, manifest)) == []:
        return []
    partial = _partial(entry)
    if todo is not None:
        shutil.rmtree(partial, ignore_errors=True)
        os.replace(entry, partial)
        print(f"{entry}: {len(todo)} damaged blocks are encoded again")
        return todo
    shutil.rmtree(entry, ignore_errors=True)
    if (todo := _unfinished(partial, manifest)) is not None:
        return todo
    shutil.rmtree(partial, ignore_errors=True)
    wanted = json.loads(manifest)
    starts = np.arange(0, wanted["num_images"], block_size(wanted["num_images"], batch_size))
    try:
        kind = np.dtype(wanted["type"])
        FeatureFiles.create(partial, wanted["width"], starts, wanted["num_images"], kind)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # with what space there was
        raise
    (partial / "manifest.json").write_text(manifest)
    return list(range(len(starts)))


def _unfinished(folder: Path, manifest: str) -> list[int] | None:
    """The blocks that lack in a folder of this manifest, or None if it cannot be gone on with."""
    try:
        if (folder / "manifest.json").read_text() != manifest:
            return None
        files = FeatureFiles(folder)
        todo = files.unfinished()
    except (OSError, ValueError, EOFError):
        return None
    wanted = json.loads(manifest)
    if (files.z.shape[1], files.z.dtype) != (wanted["width"], np.dtype(wanted["type"])):
        return None
    # The blocks of a set with skipped images moved.
    return todo if len(files) == wanted["num_images"] or not todo else None


def _encode(
    model: MRLModel,
    load: Callable[[range, int], Loader],
    files: FeatureFiles,
    blocks: Sequence[int],
    batch_size: int,
    device: torch.device,
    may_skip: bool,
    bar: Bar,
) -> None:
    """Encode consecutive blocks; each is written while the next is encoded."""
    rows = range(files.rows(blocks[0]).start, files.rows(blocks[-1]).stop)
    batch_size = _divisor(len(files.rows(0)), batch_size)
    batches = encoded(model, load(rows, batch_size).batches(0), device)
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        for block in blocks:
            z_ND, labels_N = _block(_counted(batches, bar), files, block, batch_size, may_skip)
            if written is not None:
                written.result()  # at most one block waits for the disk
            written = pool.submit(files.write, block, z_ND, labels_N)
        if written is not None:
            written.result()
    if next(batches, None) is not None:
        raise RuntimeError(f"the loader gave more than the {len(rows)} images asked for")


def _block(
    batches: Iterator[Batch], files: FeatureFiles, block: int, batch_size: int, may_skip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings and labels of one block, checked, as they are kept."""
    rows = files.rows(block)
    parts = list(islice(batches, -(-len(rows) // batch_size)))
    z_ND, labels_N = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    with np.errstate(over="ignore"):
        kept_ND = z_ND.numpy().astype(files.z.dtype, copy=False)
    if not np.isfinite(kept_ND).all():
        shutil.rmtree(files.folder, ignore_errors=True)  # of no use to anyone
        if torch.isfinite(z_ND).all():
            raise ValueError(
                f"embeddings reach {z_ND.abs().max():.3g}, more than float16 can hold "
                f"({np.finfo(np.float16).max:g}): use feature_type=float32"
            )
        raise ValueError(
            f"the model gives NaN or infinite embeddings, first among images {rows.start} to "
            f"{rows.stop - 1}: its weights are unusable"
        )
    if len(labels_N) != len(rows) and not may_skip:
        raise RuntimeError(f"the loader gave {len(labels_N)} of {len(rows)} images")
    return kept_ND, labels_N.numpy()


def _counted(batches: Iterator[Batch], bar: Bar) -> Iterator[Batch]:
    for z_ND, labels_N in batches:
        bar.update(len(labels_N))
        yield z_ND, labels_N


def _finish(entry: Path) -> None:
    """Give the partial entry its name."""
    partial = _partial(entry)
    files = FeatureFiles(partial)
    skipped = len(files) - int(files.blocks_K4[:, WRITTEN].sum())
    if skipped:
        print(f"{skipped} of {len(files)} images could not be decoded and are left out")
        text = (partial / "manifest.json").read_text()
        dense = entry.with_name(f".dense-{entry.name}")
        shutil.rmtree(dense, ignore_errors=True)
        files.copy_without_gaps(dense)
        (dense / "manifest.json").write_text(text)
        os.replace(dense, entry)
        shutil.rmtree(partial)
    else:
        os.replace(partial, entry)


def _consecutive(blocks: Sequence[int]) -> Iterator[list[int]]:
    """Runs without holes: [1, 2, 5] -> [1, 2], [5]."""
    for _, run in groupby(enumerate(blocks), key=lambda pair: pair[1] - pair[0]):
        yield [block for _, block in run]


def _divisor(block: int, batch_size: int) -> int:
    """The largest batch, up to ``batch_size``, of which a whole number makes a block."""
    return next(b for b in range(min(batch_size, block), 0, -1) if block % b == 0)


def _bar(
    manifest: Mapping[str, Any], files: FeatureFiles, blocks: Sequence[int], ranks: Ranks
) -> Bar:
    """The progress of rank 0, whose share is like the others'."""
    total = sum(len(files.rows(block)) for block in blocks)
    run = files.folder.absolute().parents[1]  # RUN/features/ENTRY
    text = f"encode {manifest['split']} of {run.parent.name}/{run.name}"
    text += " (rank 0)" * (ranks.world_size > 1)
    return progress(text, total, "img", shown=ranks.is_main)

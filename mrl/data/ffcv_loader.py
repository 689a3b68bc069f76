"""Batches of a .beton file, read and decoded by FFCV on threads.

FFCV gives the page caches, the JPEG decoder and the scaling. Its own Loader is not used: its order
and crops could not be those of the torch loader, it cannot start in the middle of an epoch, it
gives out buffers that it overwrites later, and an error in its thread makes the caller wait for
ever. Here order, crops and mirroring are functions of (seed, epoch, index), so that a run resumed
in the middle of an epoch sees what an uninterrupted one would have seen, bit for bit. What FFCV
does not guarantee: pixels are those of *its* JPEG decoder and scaling (area averages), which differ
by some grey levels from Pillow's and may differ between versions of libjpeg-turbo and OpenCV.

Shapes: N images, H x W pixels, S x S pixels of a batch's images.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mrl.data.batches import BatchPlan, mix
from mrl.data.beton import JPEG
from mrl.data.crops import central_boxes, draw_crops
from mrl.data.datasets import ImageDataset
from mrl.data.errors import DataError
from mrl.data.pixels import Pixels

AHEAD = 3  # batches prepared while one is used

Batch = tuple[Tensor, Tensor]


class FFCVLoader:
    """See :class:`mrl.data.Loader`. Images are channels_last, in pinned memory if there is a GPU.

    Args:
        size_at: epoch -> side of training images in pixels.
        threads: that decode; more than the machine has cores are not used.
        os_cache: the file is mapped, and the system's page cache holds what fits; otherwise whole
            pages are read when needed and dropped after use.
        quasi_random: training order in which images of a page come close together.

    Raises:
        DataError: if FFCV is not installed, or quasi_random is asked for with several ranks.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        plan: BatchPlan,
        *,
        pixels: Pixels,
        image_size: int,
        size_at: Callable[[int], int],
        flip: bool,
        threads: int,
        os_cache: bool,
        quasi_random: bool,
    ) -> None:
        assert dataset.beton is not None and isinstance(dataset.images, np.ndarray)
        if quasi_random and plan.train and plan.world_size > 1:
            raise DataError(
                "data.quasi_random=true works in one process only: the order follows the pages of "
                "one reader, and ranks would read the same pages; use false"
            )
        self.beton, self.dataset, self.plan = dataset.beton, dataset, plan
        self.image_size, self.size_at, self.flip = image_size, size_at, flip
        self.crop_ratio = pixels.crop_ratio
        ffcv = _import_ffcv()
        self.numba = ffcv.numba
        self.threads = min(max(threads, 1), self.numba.config.NUMBA_NUM_THREADS)
        kind = ffcv.caches.OSCacheManager if os_cache else ffcv.caches.ProcessCacheManager
        self.cache = kind(ffcv.reader.Reader(str(self.beton.path)))
        self.by_pages = self._by_pages(ffcv) if quasi_random and plan.train else None
        self.fill = _compiled(ffcv, self.cache, parallel=self.threads > 1)
        self.memory = _Memory(plan.per_rank)
        levels = np.arange(256)[:, None] / 255
        self.table = ((levels - np.array(pixels.mean)) / np.array(pixels.std)).astype(np.float32)

    @property
    def steps(self) -> int:
        return self.plan.steps

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        steps = [indices.numpy() for indices in self._indices(epoch, start)]
        if not steps:
            return
        images = self.dataset.images
        # One thread, since the cache wants the batches in order; its decoding uses all `threads`.
        pool = ThreadPoolExecutor(1, initializer=self._set_up_thread)
        context = self.cache.schedule_epoch([images[rows] for rows in steps])
        with context, pool:
            pending: deque[Future[Batch]] = deque()
            try:
                for number, rows in enumerate(steps):
                    pending.append(pool.submit(self._batch, context, number, rows, epoch))
                    if len(pending) > AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _set_up_thread(self) -> None:
        """Numba's settings belong to the thread that calls compiled code."""
        self.numba.set_num_threads(self.threads)
        # One image at a time: with equal shares of a batch, all would wait for who got most JPEGs.
        self.numba.set_parallel_chunksize(1)

    def _indices(self, epoch: int, start: int) -> Iterator[Tensor]:
        """Rows of the data set, batch by batch."""
        if self.by_pages is None:
            yield from (rows for _, rows in self.plan.indices(epoch, start))
            return
        by_pages = copy(self.by_pages)
        # FFCV shuffles it in place, so that an order would depend on those drawn before.
        by_pages.page_to_samples_array = by_pages.page_to_samples_array.copy()
        # FFCV seeds with 32 bits, in which seed and epoch are mixed here.
        order = torch.from_numpy(by_pages.sample_order(mix(self.plan.seed, epoch) >> 32))
        rows = torch.empty(int(order.max()) + 1, dtype=torch.int64)
        rows[torch.from_numpy(self.dataset.images)] = torch.arange(len(order))
        batch = self.plan.batch_size
        for step in range(start, self.steps):
            yield rows[order[step * batch : (step + 1) * batch]]

    def _by_pages(self, ffcv: Any) -> Any:
        """FFCV's quasi-random order of the images, which are numbered as in the file."""
        return ffcv.orders.QuasiRandom(
            SimpleNamespace(
                indices=self.dataset.images,
                seed=0,
                distributed=False,
                memory_manager=self.cache,
                batch_size=self.plan.batch_size,
            )
        )

    def _batch(self, context: Any, number: int, rows: np.ndarray, epoch: int) -> Batch:
        context.start_batch(number)
        stored = self.dataset.images[rows]
        records = self.beton.samples["image"][stored]
        size = self.size_at(epoch) if self.plan.train else self.image_size
        boxes, mirrored = self._crops(records, rows, epoch)
        out_NHWC = self.memory.batch(len(rows), size)
        failed = np.zeros(len(rows), bool)
        kinds = {"pointer": np.uint64, "mode": np.int64, "height": np.int64, "width": np.int64}
        columns = (records[name].astype(kind) for name, kind in kinds.items())
        self.fill(context.state, *columns, boxes, mirrored, self.table, out_NHWC.numpy(), failed)
        if failed.any():
            raise DataError(
                f"cannot decode image {int(stored[failed.argmax()])} of {self.beton.path}: the "
                "file is damaged. Make it again with python scripts/write_ffcv.py"
            )
        return out_NHWC.permute(0, 3, 1, 2), self.dataset.labels[torch.from_numpy(rows)]

    def _crops(
        self, records: np.ndarray, rows: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        heights, widths = records["height"], records["width"]
        if not self.plan.train:
            boxes = central_boxes(heights, widths, self.crop_ratio)
            return boxes, np.zeros(len(rows), bool)
        return draw_crops(heights, widths, rows, seed=self.plan.seed, epoch=epoch, flip=self.flip)


class _Memory:
    """Float32 batches, each of its own memory, which the caller may keep for as long as it likes.

    What it has let go of is used again: over a quarter of the time at 224 px went into the
    operating system, which clears fresh memory page by page.
    """

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0  # images in a batch; their side
        self.unused: list[np.ndarray] = []

    def batch(self, count: int, size: int) -> Tensor:
        """(count, size, size, 3), with whatever was there."""
        if torch.cuda.is_available():
            # PyTorch itself keeps such memory and uses it again.
            return torch.empty(count, size, size, 3, pin_memory=True)
        if size != self.size:
            self.size, self.unused = size, []
        unused = self.unused
        memory = unused.pop() if unused else np.empty((self.most, size, size, 3), np.float32)
        lent = memory[:count]  # dies with the last tensor that shows it
        weakref.finalize(lent, unused.append, memory)
        return torch.from_numpy(lent)


_fills: dict[tuple[Any, ...], Callable[..., None]] = {}  # compiling takes seconds


def _compiled(ffcv: Any, cache: Any, *, parallel: bool) -> Callable[..., None]:
    """:func:`_compile` for this kind of cache, once in a process."""
    key = (type(cache), int(cache.reader.page_size), parallel)
    if key not in _fills:
        _fills[key] = _compile(ffcv, cache.compile_reader(), parallel=parallel)
    return _fills[key]


def _compile(ffcv: Any, read: Callable[..., Any], *, parallel: bool) -> Callable[..., None]:
    """Decode, crop, scale, mirror and normalise a batch; compiled when it is first called."""
    numba = ffcv.numba
    jpeg, prange = JPEG, numba.prange
    decode, resize_crop = numba.njit(ffcv.lib.imdecode), numba.njit(ffcv.lib.resize_crop)

    def fill(
        state: Any,
        pointers: Any,
        modes: Any,
        heights: Any,
        widths: Any,
        boxes: Any,
        mirrored: Any,
        table: Any,
        out_NHWC: Any,
        failed: Any,
    ) -> None:
        size = out_NHWC.shape[1]
        for n in prange(len(pointers)):
            data = read(pointers[n], state)
            height, width = heights[n], widths[n]
            if modes[n] == jpeg:
                pixels = np.empty((height, width, 3), np.uint8)
                # Not 0 also for warnings: we wrote the JPEGs, and they have no flaws.
                code = decode(data, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
                failed[n] = code != 0
            else:
                pixels = data.reshape((height, width, 3))
            top, left, high, wide = boxes[n]
            crop = np.empty((size, size, 3), np.uint8)
            resize_crop(pixels, top, top + high, left, left + wide, crop)
            for y in range(size):
                for x in range(size):
                    source = size - 1 - x if mirrored[n] else x
                    for c in range(3):
                        out_NHWC[n, y, x, c] = table[crop[y, source, c], c]

    return numba.njit(fill, nogil=True, parallel=parallel)


def _import_ffcv() -> SimpleNamespace:
    """The modules of FFCV in use, imported now; PyTorch's number of threads is left as it was."""
    threads = torch.get_num_threads()
    try:
        return SimpleNamespace(
            numba=import_module("numba"),
            caches=import_module("ffcv.memory_managers"),
            lib=import_module("ffcv.libffcv"),
            orders=import_module("ffcv.traversal_order"),
            reader=import_module("ffcv.reader"),
        )
    except ImportError as error:
        raise DataError(
            f"data.loader=ffcv needs FFCV, which cannot be imported ({error}): install it with "
            "bash scripts/install_ffcv.sh, or use data.loader=torch"
        ) from error
    finally:
        torch.set_num_threads(threads)  # FFCV's import sets it to 1

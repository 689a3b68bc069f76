"""Threads that share a search."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def workers(on_gpu: bool) -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch is set to, each taking whole blocks, every operation in one thread.

    With the operations themselves split over threads, these wait for each other after each of
    thousands of short steps, which is several times slower where another program keeps a core busy.
    """
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(1 if on_gpu else count) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)  # Ctrl-C: not the whole queue first
                raise
    finally:
        torch.set_num_threads(count)

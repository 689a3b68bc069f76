"""Processes that prepare batches: signals are not theirs to act on, and a lost one is named."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Process, connection, resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader

from mrl.data.errors import DataError
from mrl.stopping import SIGNALS

NEWS = 2  # seconds until the end of a process is known, after its pipes were closed


class WorkerError(DataError):
    """A worker ended that should not have; raised where a batch is asked for."""


def from_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches; its ``worker_init_fn`` should be :func:`leave_signals_to_parent`.

    What stops a job sends its signals to all of its processes. The parent finishes its step, for
    which it may need another batch, and then ends the workers.

    Raises:
        WorkerError: if a worker was killed.
    """
    workers: list[Process] = []
    if (loader.multiprocessing_context or torch.multiprocessing).get_start_method() != "fork":
        resource_tracker.ensure_running()  # its start would let the signals through
    try:
        with _signals_held_back():
            batches = iter(loader)
        workers = getattr(batches, "_workers", [])  # absent where this process decodes
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:  # of torch, or of a pipe
        if lost := _lost(workers):
            raise WorkerError(_sentence(lost, loader.num_workers)) from error
        raise


def leave_signals_to_parent(worker: int) -> None:
    """For a worker's start; it still ends when its parent says so, or is gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a fork server's children lack it so far
    threading.Thread(target=_end_at_parents_word, daemon=True).start()


def _end_at_parents_word() -> None:
    # multiprocessing ends by SIGTERM what does not end by itself, and then waits for it.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Processes started meanwhile never get these signals; this one gets them afterwards.

    And it is left without the handler of SIGCHLD that torch installs with its first workers, which
    raises anywhere: in the middle of an optimizer's step, say, whose state could then not be saved.
    Without it torch looks after its workers when a batch is some seconds late.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, signal.SIGCHLD})
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _lost(workers: list[Process]) -> Process | None:
    """The first worker that ended with a fault."""
    if not workers:
        return None
    ended = connection.wait([each.sentinel for each in workers], timeout=NEWS)
    for each in workers:
        if each.sentinel in ended:
            each.join(NEWS)  # its files are closed before its exit code is there
    return next((each for each in workers if each.exitcode), None)


def _sentence(lost: Process, num_workers: int) -> str:
    code = lost.exitcode or 0
    if code > 0:
        return f"a data worker (process {lost.pid}) ended with exit code {code}"
    number = signal.Signals(-code)
    fewer = f"use fewer workers (data.workers={num_workers // 2}, now {num_workers})"
    advice = {
        signal.SIGKILL: f"as a system does that is short of memory: {fewer}, or ask for more of it",
        signal.SIGBUS: f"most often because shared memory (/dev/shm) is full: {fewer}, or give a "
        "container more (--shm-size)",
    }.get(number, "by a fault in a library that decodes images")
    return f"a data worker (process {lost.pid}) was killed by {number.name}, {advice}"

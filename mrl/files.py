"""Files that are whole or not there, and locks that end with the process that holds them.

What a killed process was writing stays beside its target under a hidden name; whoever writes there
next removes it.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows: leftovers stay there
    fcntl = None  # type: ignore[assignment]

_YOUNG = 60  # seconds: what is younger may be about to be locked by its writer


class LockedError(RuntimeError):
    """Another process holds the lock."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside ``path``, flush to the disk, then rename: ``path`` is old or new, never half."""
    remove_leftovers(path)
    temporary = temporary_of(path)
    try:
        with temporary.open("wb") as file:
            mark_as_ours(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_of(path: Path) -> Path:
    """Where this process writes what is to become ``path``."""
    # Not tempfile's: its files are for their owner alone, and others may read a run's.
    return path.with_name(f".{path.name}.{os.getpid()}")


def mark_as_ours(descriptor: int) -> None:
    """Tell other processes that an open temporary file or folder has a writer who lives."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers(path: Path) -> None:
    """Remove what dead processes left of writing ``path``."""
    start = f".{path.name}."
    with suppress(OSError):
        found = [p for p in path.parent.iterdir() if p.name.startswith(start)]
        for leftover in found:
            writer, _, kind = leftover.name.removeprefix(start).partition(".")
            # "old": what was replaced, unless that is where it ended.
            spare = not kind or (kind == "old" and path.exists())
            if writer.isdigit() and spare and _is_dead(leftover):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def _is_dead(temporary: Path) -> bool:
    if fcntl is None or time.time() - temporary.stat().st_mtime < _YOUNG:
        return False
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its writer's, or nobody can tell
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def alone(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of ``path`` alone among all processes; the system frees it when one dies.

    The lock is a hidden file beside ``path``, which stays.

    Raises:
        LockedError: if another process holds it and ``wait`` is false.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0, mode=0o666)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockedError(f"another process holds {lock.lock_file}") from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        lock.release()

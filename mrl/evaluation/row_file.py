"""An .npy file whose rows are written and read by position, and a lock that a crash sets free."""

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep

import numpy as np
from numpy.lib.format import open_memmap

_POLL_SECONDS = 2.0
_MAP_NORESERVE = 0x4000  # Linux; Python 3.12 has no name for it


class RowFile:
    """Read and written by system calls: pages of a memory map would count as our memory, and on a
    full disk writing to a map ends the process by SIGBUS where a write gives an error."""

    def __init__(self, path: Path) -> None:
        """Opens a file that is there.

        Raises:
            OSError, ValueError, EOFError: if it is missing, cut short or no .npy file.
        """
        header = np.load(path, mmap_mode="r")
        self.path, self.shape, self.dtype = path, header.shape, header.dtype
        self.offset, self.row_bytes = header.offset, header.nbytes // max(1, len(header))

    @classmethod
    def create(cls, path: Path, dtype: type | np.dtype, shape: tuple[int, ...]) -> "RowFile":
        """A file of zeros, with its disk space taken at once (OSError if there is too little)."""
        mapped = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        size = mapped.offset + mapped.nbytes
        del mapped
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        return cls(path)

    def mapped(self) -> np.ndarray:
        """All rows, read from the file as they are used; writing to them changes a private copy.

        (Torch has no read-only tensors.) No memory is set aside for that copy: the system would
        refuse a file larger than its memory.
        """
        flags, access = mmap.MAP_PRIVATE | _MAP_NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        with self.path.open("rb") as file:
            memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=access)
        return np.ndarray(self.shape, self.dtype, memory, self.offset)

    def read(self, start: int, count: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset + start * self.row_bytes)
            return file.read(count * self.row_bytes)

    def write(self, start: int, rows: np.ndarray) -> None:
        """Returns once the rows are on the disk."""
        assert rows.dtype == self.dtype and rows.flags.c_contiguous
        with self.path.open("r+b") as file:
            file.seek(self.offset + start * self.row_bytes)
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def locked(path: Path, agree: Callable[[Callable[[], bool]], bool]) -> Iterator[None]:
    """Hold the lock ``path`` alone among all processes, waiting for it if need be.

    The kernel frees it when its holder ends, however that ends.

    Args:
        agree: calls what it is given where that should be done once (on rank 0), and gives every
            rank the answer. Ranks ask again and again, as no collective waits for hours.
    """
    held: list[int] = []

    def take() -> bool:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                held.append(descriptor)
                return True
        except (BlockingIOError, FileNotFoundError):  # another's; or deleted by who held it
            pass
        os.close(descriptor)
        return False

    if not agree(take):
        print(f"another process is encoding these images: waiting for it to free {path}")
        while not agree(take):
            sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        for descriptor in held:
            with suppress(FileNotFoundError):
                path.unlink()  # while it is held; whoever waits finds it gone and makes its own
            os.close(descriptor)

"""The files of one set of embeddings, written in blocks, each of which is safe once written.

``blocks.npy`` notes for each block of images what was written and its CRC-32, after the block
itself has reached the disk.  So an interrupted extraction goes on after its last block, and where
bits have flipped only their block is made again.

Shapes: N images, D embedding width, K blocks.
"""

import zlib
from pathlib import Path

import numpy as np

from mrl.evaluation.row_file import RowFile

MAX_BLOCK = 4096  # images; at 2048 numbers each, 32 MiB
NOT_YET = -1  # in place of the number of images written
START, WRITTEN = 0, 1  # columns of blocks.npy, int64 (K, 4); then CRC-32 of embeddings and labels


def block_size(num_images: int, batch_size: int) -> int:
    """Images per block: whole batches, and for small sets small enough to share among ranks."""
    return batch_size * max(1, min(MAX_BLOCK, num_images // 64) // batch_size)


class FeatureFiles:
    """A folder's embeddings.npy (N, D) float32 or float16, labels.npy (N,) int64 and blocks.npy."""

    def __init__(self, folder: Path) -> None:
        """Opens what is there.

        Raises:
            OSError, ValueError, EOFError: if files are missing, damaged or not what they should be.
        """
        self.folder = folder
        self.z, self.labels = RowFile(folder / "embeddings.npy"), RowFile(folder / "labels.npy")
        self.notes = RowFile(folder / "blocks.npy")
        self.blocks_K4 = np.load(folder / "blocks.npy")
        found = [(file.dtype, len(file.shape)) for file in (self.z, self.labels, self.notes)]
        wanted = [[(kind, 2), (np.int64, 1), (np.int64, 2)] for kind in (np.float32, np.float16)]
        if found not in wanted or self.blocks_K4.shape[1] != 4:
            raise ValueError(f"{folder} holds other arrays than embeddings, labels and blocks")
        if self.labels.shape != self.z.shape[:1]:
            raise ValueError(f"{folder} does not have as many labels as embeddings")

    @classmethod
    def create(
        cls, folder: Path, width: int, starts: np.ndarray, count: int, kind: np.dtype
    ) -> "FeatureFiles":
        """Files in which no block is written; their disk space is taken at once.

        Args:
            kind: type of the embeddings.

        Raises:
            OSError: also if there is not enough space.
        """
        folder.mkdir(parents=True)
        RowFile.create(folder / "embeddings.npy", kind, (count, width))
        RowFile.create(folder / "labels.npy", np.int64, (count,))
        blocks_K4 = np.full((len(starts), 4), NOT_YET, dtype=np.int64)
        blocks_K4[:, START] = starts
        np.save(folder / "blocks.npy", blocks_K4)
        return cls(folder)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def rows(self, block: int) -> range:
        """The images that belong to the block."""
        ends = [*self.blocks_K4[1:, START].tolist(), len(self)]
        return range(int(self.blocks_K4[block, START]), ends[block])

    def write(self, block: int, z_ND: np.ndarray, labels_N: np.ndarray) -> None:
        """Put a block on the disk, then note it; fewer rows than it has room for may come."""
        start = self.rows(block).start
        self.z.write(start, z_ND)
        self.labels.write(start, labels_N)
        sums = zlib.crc32(z_ND.data), zlib.crc32(labels_N.data)
        note_K4 = np.array([[start, len(labels_N), *sums]], dtype=np.int64)
        self.notes.write(block, note_K4)
        self.blocks_K4[block] = note_K4

    def unfinished(self) -> list[int]:
        """Blocks that were not written, or whose bytes have changed since."""
        return [k for k, note in enumerate(self.blocks_K4.tolist()) if not self._is_intact(*note)]

    def _is_intact(self, start: int, written: int, crc_z: int, crc_labels: int) -> bool:
        if not 0 <= written <= len(self) - start:
            return False
        z, labels = self.z.read(start, written), self.labels.read(start, written)
        return (zlib.crc32(z), zlib.crc32(labels)) == (crc_z, crc_labels)

    def copy_without_gaps(self, folder: Path) -> None:
        """Write the blocks into ``folder`` without the rows that skipped images left empty."""
        written_K = self.blocks_K4[:, WRITTEN]
        starts = written_K.cumsum() - written_K
        count, width = int(written_K.sum()), self.z.shape[1]
        dense = FeatureFiles.create(folder, width, starts, count, self.z.dtype)
        z_ND, labels_N = self.maps()
        for k, (start, written) in enumerate(self.blocks_K4[:, :2].tolist()):
            rows = slice(start, start + written)
            dense.write(k, z_ND[rows], labels_N[rows])

    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and labels, mapped into memory."""
        return self.z.mapped(), self.labels.mapped()

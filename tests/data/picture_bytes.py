"""Pictures that Pillow does not write: PNG and TIFF, byte for byte."""

import struct
import zlib

import numpy as np


def png(
    rows: np.ndarray, size: tuple[int, int], bits: int, colour: int, trns: bytes = b""
) -> bytes:
    """Packed rows uint8 (H, bytes); ``size`` is (W, H), ``colour`` 0: grey, 2: RGB."""
    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), (b"tRNS", trns), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*c) for c in chunks if c != (b"tRNS", b""))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(
    pixels: bytes, size: tuple[int, int], bits: int, *, photometric: int = 1, sample_format: int = 1
) -> bytes:
    """Grey, little-endian, not compressed; photometric 0: 0 is white; sample_format 2: signed."""
    tags = {256: size[0], 257: size[1], 258: bits, 259: 1, 262: photometric}
    start = 8 + 2 + 12 * 10 + 4
    tags |= {273: start, 277: 1, 278: size[1], 279: len(pixels), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + struct.pack("<I", 0) + pixels

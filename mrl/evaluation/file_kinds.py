"""What a file is by its first bytes, whatever its name says."""

import zipfile
from pathlib import Path

_HEAD_BYTES = 512

_COMPRESSED = "unpack it first"
_RESAVE = "save its array by numpy.save, as a .npy file"
# The first bytes, what they are of, and what to do with such a file.
_BEGINNINGS = [
    (b"\x93NUMPY", "a .npy file", "give its name that ending"),
    (b"PAR1", "a .parquet file", "give its name that ending"),
    (b"version https://git-lfs", "a Git LFS pointer to the data", "fetch them by git lfs pull"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _RESAVE),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file", _RESAVE),
    (b"ARROW1", "an Arrow (Feather) file", "save its table as .parquet"),
    (b"\x1f\x8b", "compressed by gzip", _COMPRESSED),
    (b"BZh", "compressed by bzip2", _COMPRESSED),
    (b"\xfd7zXZ\0", "compressed by xz", _COMPRESSED),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _COMPRESSED),
    *((bytes([0x80, protocol]), "a Python pickle", _RESAVE) for protocol in range(2, 6)),
]


def check_content(path: Path) -> None:
    """Refuse a .npy or .parquet file that holds something else.

    Raises:
        ValueError: saying what it is and what to do.
        OSError: if it cannot be read.
    """
    what, cure = kind_of(path)
    if what != f"a {path.suffix} file":
        raise ValueError(f"{path} cannot be read: it is {what}: {cure}")


def kind_of(path: Path) -> tuple[str, str]:
    """What the regular file at ``path`` is, and what to do with it."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    for beginning, what, cure in _BEGINNINGS:
        if head.startswith(beginning):
            return what, cure
    if not head:
        return "empty", "save or copy it again"
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _kind_of_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "a safetensors file", _RESAVE
    if head[257:262] == b"ustar":
        return "a tar archive", _COMPRESSED
    return _kind_of_text(head)


def _kind_of_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return "a zip archive that is cut short", "copy it again"
    arrays = [name.removesuffix(".npy") for name in names if name.endswith(".npy")]
    if arrays:
        return f"an .npz archive of {', '.join(arrays[:5])}", "save one of its arrays by numpy.save"
    if any(name.endswith("data.pkl") for name in names):
        return "a PyTorch file", "save its tensor by numpy.save, as a .npy file"
    return "a zip archive", _COMPRESSED


def _kind_of_text(head: bytes) -> tuple[str, str]:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (an error, or a log-in?)", "download the file itself"
    # A sign of several bytes may be cut by the end of what was read.
    if b"\0" not in head and "\N{REPLACEMENT CHARACTER}" not in head[:-3].decode(errors="replace"):
        return f"text ({head[:40].decode(errors='replace').splitlines()[0]!r})", _RESAVE
    return f"of no known kind (it begins with {head[:8].hex(' ')})", _RESAVE

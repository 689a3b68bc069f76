"""A folder that is written whole or not at all, with a manifest, and what a bank is known by."""

import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrl.files import mark_as_ours, remove_leftovers, temporary_of

FORMAT = 1  # of the folder; another number is another meaning
MANIFEST = "manifest.json"
_CHUNK = 4 * 2**20  # bytes that are read at once; the hashes depend on it


def bank_hash(bank: Tensor) -> str:
    """What tells one bank (B, D) from another: a hash of type, shape and all its bytes.

    SHA-256 over the CRC-32 of each chunk: several times faster than SHA-256 of the bytes, and made
    against mix-ups, not against forgery. A memory map is read through once, never loaded.
    """
    rows = max(1, _CHUNK // (bank.element_size() * bank.shape[1]))
    chunks = (_bytes(chunk) for chunk in bank.split(rows))
    return _digest(f"{bank.dtype} {tuple(bank.shape)}", chunks)


def file_hash(path: Path) -> str:
    """The same of a file's bytes."""
    with path.open("rb") as file:
        return _digest("file", iter(lambda: file.read(_CHUNK), b""))


def _digest(what: str, chunks: Iterable[bytes | memoryview]) -> str:
    digest = sha256(what.encode())
    for chunk in chunks:
        digest.update(zlib.crc32(chunk).to_bytes(4, "little"))
    return digest.hexdigest()


def _bytes(rows: Tensor) -> memoryview:
    return rows.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which becomes ``folder`` at the end, or vanishes on an error.

    Raises:
        FileExistsError: at once, if something stands there that has no manifest; what has one is
            replaced.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise FileExistsError(f"{folder} is there and is no saved index: choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, as only names on one file system can be exchanged at a stroke.
    remove_leftovers(folder)
    temporary = temporary_of(folder)
    old = temporary.with_name(f"{temporary.name}.old")
    held = -1
    try:
        temporary.mkdir()
        held = os.open(temporary, os.O_RDONLY)
        mark_as_ours(held)
        yield temporary
        for path in temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists():  # a rename does not replace a folder with files in it
            folder.rename(old)
        temporary.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        if held >= 0:
            os.close(held)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    facts = {"format": FORMAT, **facts}
    facts["checksum"] = _checksum(facts)
    (folder / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved index.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"there is no index at {folder}: {MANIFEST} is missing")
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(facts, dict) or "format" not in facts:
        raise ValueError(f"{path} is damaged: it describes no index")
    if facts["format"] != FORMAT:
        raise ValueError(f"{path} has format {facts['format']!r}, not {FORMAT}: build it again")
    if facts.pop("checksum", None) != _checksum(facts):
        raise ValueError(f"{path} is damaged: its checksum is wrong")
    return facts


def _checksum(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())

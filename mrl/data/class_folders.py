"""Which folders are classes and which files below them are pictures: one rule for every reader.

A picture is a file with one of torchvision's endings, at any depth below its class folder, and
counts once. Names that begin with a dot, folders whose names begin with @ or ~, and what systems
put beside pictures (``NOT_OURS``), are left out. Links to files and folders are followed, but not
back up, nor to what is there already. Names are compared in Unicode's form NFC: macOS writes the
same letters in another one.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch.distributed as dist
from torchvision.datasets.folder import IMG_EXTENSIONS

from mrl.data.errors import DataError, some

# In lower case: thumbnails, bins and snapshots of file servers, what archives of macOS bring along,
# and what file systems and Windows keep for themselves.
NOT_OURS = {
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__macosx"),
    *("lost+found", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"),
    *("network trash folder", "temporary items", "__pycache__"),
}
AGAIN = "linked once more"
NO_FILE = "neither file nor folder"

Entry: TypeAlias = "os.DirEntry[str]"
RealFolder = Callable[[str, str], str]  # of the second path, as seen from the first


@dataclass(slots=True)
class _Found:
    """What lies below one class folder, by path."""

    files: list[str] = field(default_factory=list)
    # Links to files -> the real folder of that file, and its name there.
    links: dict[str, tuple[str, str]] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)  # real folder -> the path that led there
    left_out: Counter[str] = field(default_factory=Counter)  # by ending, or reason


def same_name(name: str) -> str:
    """The form in which names of classes are kept and compared."""
    return unicodedata.normalize("NFC", name)


def repeated(names: Iterable[str]) -> list[str]:
    """Those that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def class_folders(root: Path) -> dict[str, Path]:
    """Name -> folder of each class in ``root``, in order of names; none if there is no ``root``.

    Raises:
        DataError: if ``root`` cannot be read, or two folders differ in the form of letters alone.
    """
    if not root.is_dir():
        return {}
    above = _above(root / "any")
    found: dict[str, Path] = {}
    for entry in _entries(str(root)):
        if not _is_dir(entry) or (entry.is_symlink() and os.path.realpath(entry.path) in above):
            continue
        name = same_name(entry.name)
        if name in found:
            raise DataError(
                f"two folders in {root} have the same name, {name}, in different Unicode forms "
                "(composed and decomposed letters): merge them, or rename one"
            )
        found[name] = Path(entry.path)
    return dict(sorted(found.items()))


def find_pictures(folders: Iterable[Path]) -> list[list[bytes]]:
    """The encoded paths of the pictures below each class folder, in alphabetical order.

    Says, in one line, how many other files there are.

    Raises:
        DataError: if a folder cannot be read, a link leads nowhere, or links make a picture belong
            to two classes; with the paths.
    """

    @cache  # a million links lead into few folders
    def real_folder(path: str, folder: str) -> str:
        return os.path.realpath(os.path.join(path, folder))

    found = [_walk(folder, real_folder) for folder in folders]
    _add_links(found, _owners(found))
    left_out = sum((one.left_out for one in found), Counter[str]())
    if left_out:
        where = os.path.commonpath([path for one in found for path in one.folders.values()])
        most_first = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
        counts = [f"{count} {what}" for what, count in most_first]
        say(f"{where}: left out {some(counts)}. Pictures end in {', '.join(IMG_EXTENSIONS)}")
    return [sorted(os.fsencode(path) for path in one.files) for one in found]


def say(text: str) -> None:
    """Print it, in the first of several processes alone."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(text)


def _walk(folder: Path, real_folder: RealFolder) -> _Found:
    found, above = _Found(), _above(folder)
    waiting = [(str(folder), os.path.realpath(folder))]  # path and real path
    linked: list[tuple[str, str]] = []
    while waiting or linked:  # folders before links to them, so that those are left out
        path, real = waiting.pop() if waiting else linked.pop()
        if real in above or real in found.folders:
            found.left_out[AGAIN] += 1
            continue
        found.folders[real] = path
        for entry in _entries(path):
            if _is_picture_name(entry.name) and entry.is_file(follow_symlinks=False):
                found.files.append(entry.path)
            elif not _is_dir(entry):
                _add_other(found, entry, path, real_folder)
            elif entry.is_symlink():
                linked.append((entry.path, os.path.join(*_target(entry, path, real_folder))))
            else:
                waiting.append((entry.path, os.path.join(real, entry.name)))
        linked.sort(reverse=True)  # to be taken in the order of their paths
    return found


def _add_other(found: _Found, entry: Entry, path: str, real_folder: RealFolder) -> None:
    """Take a link to a picture; count what is none."""
    if not _is_picture_name(entry.name):
        found.left_out[os.path.splitext(entry.name)[1].lower() or "without an ending"] += 1
    elif entry.is_file():
        found.links[entry.path] = _target(entry, path, real_folder)
    else:
        found.left_out[NO_FILE] += 1  # a pipe, which to read would take for ever


def _above(folder: Path) -> set[str]:
    """The real paths of the folders that ``folder`` lies in, and that it is reached through."""
    parents = [Path(os.path.realpath(place)) for place in (folder, folder.parent)]
    return {str(p) for p in (*parents[0].parents, parents[1], *parents[1].parents)}


def _entries(path: str) -> list[Entry]:
    try:
        with os.scandir(path) as entries:
            return [e for e in entries if _is_ours(e.name) and not _is_of_a_server(e)]
    except OSError as error:
        raise DataError(f"cannot read the folder {path}: {error.strerror}") from error


def _is_of_a_server(entry: Entry) -> bool:
    """Whether it is such a folder as @__thumb or ~snapshot; there are more than one can list."""
    return entry.name.startswith(("@", "~")) and entry.is_dir(follow_symlinks=False)


def _is_ours(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in NOT_OURS


def _is_dir(entry: Entry) -> bool:
    """Whether it is a folder, or a link to one.

    Raises:
        DataError: for a link that leads nowhere: pictures would be missing, and no one would know.
    """
    try:
        is_dir = entry.is_dir()
        if entry.is_symlink():
            entry.stat()
    except OSError as error:
        raise DataError(
            f"cannot read {entry.path}, a link to {os.path.realpath(entry.path)}: "
            f"{error.strerror}. Bring that back, or delete the link"
        ) from error
    return is_dir


def _is_picture_name(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _target(link: Entry, path: str, real_folder: RealFolder) -> tuple[str, str]:
    """What a link in the folder ``path`` leads to: its real folder, and its name there."""
    folder, name = os.path.split(os.readlink(link.path))
    real = real_folder(path, folder)
    if name in ("", ".", "..") or os.path.islink(f"{real}/{name}"):
        real, name = os.path.split(os.path.realpath(link.path))
    return real, name


def _owners(found: list[_Found]) -> dict[str, int]:
    """Real folder -> the number of the class whose it is."""
    owners: dict[str, int] = {}
    for number, one in enumerate(found):
        for real, path in one.folders.items():
            if real in owners:
                raise _in_two_classes(real, found[owners[real]].folders[real], path)
            owners[real] = number
    return owners


def _add_links(found: list[_Found], owners: dict[str, int]) -> None:
    """Take the links to files that are not among the pictures otherwise."""
    taken: dict[tuple[str, str], tuple[int, str]] = {}  # real file -> class and path
    for number, one in enumerate(found):
        for path, real in sorted(one.links.items()):
            folder, name = real
            if folder in owners and _is_ours(name) and _is_picture_name(name):
                taken[real] = owners[folder], f"{folder}/{name}"
            owner, first = taken.setdefault(real, (number, path))
            if owner != number:
                raise _in_two_classes(f"{folder}/{name}", first, path)
            if first == path:
                one.files.append(path)
            else:
                one.left_out[AGAIN] += 1


def _in_two_classes(real: str, first: str, second: str) -> DataError:
    return DataError(
        f"links make {real} part of two classes, through {first} and {second}: a picture has one "
        "label, so delete one of the links"
    )

"""Fashion-MNIST: find its four files, else fetch them; verify them whichever way they came."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torchvision
from torch import Tensor

from mrl.data import fetching
from mrl.data.errors import DataError
from mrl.data.idx import read_idx

CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]

# SHA-256 of the UNCOMPRESSED files, because Debian's .gz files lack the name and time that
# upstream's have in their headers.  Computed from Debian's dataset-fashion-mnist
# 0.0~git20200523.55506a9-1.  With name and time put back, its four files have the MD5 sums that
# torchvision publishes for upstream's: the content is the same.  Downloads are held to those too.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts its files

log = logging.getLogger(__name__)


def load(root: Path, *, download: bool = True) -> dict[str, tuple[Tensor, Tensor]]:
    """``{"train": (images, labels), "test": ...}``: uint8 (N, 1, 28, 28) and int64 (N,).

    Several processes may call this at once; it is cheaper to let one of them go first.

    Raises:
        DataError: if the files are nowhere and cannot be fetched, or one is not what it should be.
    """
    folder = find(root) or fetch(root, download=download)
    files = _read_all(folder)
    return {
        split: (
            files[f"{prefix}-images-idx3-ubyte"].unsqueeze(1),
            files[f"{prefix}-labels-idx1-ubyte"].long(),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def folders(root: Path) -> list[Path]:
    """Where the files may lie, ours first; the second is torchvision's layout."""
    return [root / "fashion-mnist", root / "FashionMNIST" / "raw", root, INSTALLED]


def find(root: Path) -> Path | None:
    """The first folder that has all four files, packed or unpacked."""
    for folder in folders(root):
        if all(_path(folder, name) for name in SHA256):
            return folder
    return None


def fetch(root: Path, *, download: bool = True) -> Path:
    """Get the four files from the first source that gives good ones into ``root/fashion-mnist``.

    Raises:
        DataError: if no source does, or the folder cannot be written.
    """
    failures = []
    for label, source in SOURCES if download else ():
        log.info("Fetching Fashion-MNIST from %s", label)
        with _staging(root) as staging:
            try:
                source(staging)
                _read_all(staging)
            except (fetching.FetchError, DataError, OSError) as error:
                log.info("  that did not work: %s", error)
                failures.append(f"  {label}: {error}")
                continue
            return _publish(staging, root / "fashion-mnist")
    raise DataError(_nowhere(root, failures or ["  not tried, because data.download=false"]))


def from_mirrors(folder: Path) -> None:
    """Download the .gz files from the mirrors that torchvision knows."""
    errors = []
    for mirror in torchvision.datasets.FashionMNIST.mirrors:
        try:
            for name, md5 in torchvision.datasets.FashionMNIST.resources:
                fetching.download(f"{mirror}{name}", folder / name, md5)
            return
        except (OSError, fetching.FetchError) as error:  # URLErrors and time-outs are OSErrors
            errors.append(f"{mirror}: {error}")
    raise fetching.FetchError("; ".join(errors))


def from_debian(folder: Path) -> None:
    """Unpack the files of Debian's package, without root and without installing it."""
    with fetching.debian_package(PACKAGE) as unpacked:
        for name in SHA256:
            source = unpacked / INSTALLED.relative_to("/") / f"{name}.gz"
            shutil.copyfile(source, folder / source.name)


SOURCES: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("torchvision's mirrors", from_mirrors),
    (f"Debian's package {PACKAGE}", from_debian),
)


def _path(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _read_all(folder: Path) -> dict[str, Tensor]:
    files = {}
    for name, sha256 in SHA256.items():
        path = _path(folder, name)
        if path is None:
            raise DataError(f"{name}.gz is missing in {folder}")
        files[name] = read_idx(path, num_axes=3 if "idx3" in name else 1, sha256=sha256)
    return files


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A temporary folder on the file system of ``root``, so that files can be renamed into it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=".fashion-mnist-", dir=root)
    except OSError as error:
        raise _unwritable(root, error) from error
    with staging as path:
        yield Path(path)


def _publish(staging: Path, folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
        for file in sorted(staging.iterdir()):
            os.replace(file, folder / file.name)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write to the data folder {folder.absolute()}: {error.strerror or error}. "
        "Choose another with data.root=FOLDER or the environment variable MRL_DATA"
    )


def _nowhere(root: Path, failures: list[str]) -> str:
    looked = "\n".join(f"  {folder.absolute()}" for folder in folders(root))
    return "\n".join(
        [
            f"Fashion-MNIST (four files: {', '.join(f'{name}.gz' for name in SHA256)}) was not in",
            looked,
            "and could not be fetched:",
            *failures,
            "There are three ways to get it:",
            f"  1. put the four files, packed or unpacked, into {root.absolute()}/fashion-mnist;",
            "  2. run once with a connection to torchvision's mirror and data.download=true;",
            f"  3. on Debian or Ubuntu with a package mirror in reach: apt-get install {PACKAGE},",
            "     or without root, which data.download=true does by itself: apt-get download + "
            "dpkg-deb -x.",
        ]
    )

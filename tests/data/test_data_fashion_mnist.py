"""idx files and the acquisition of Fashion-MNIST."""

import functools
import gzip
import hashlib
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torchvision
from idx_files import idx_bytes, write_files

from mrl.data import DataError, fashion_mnist, fetching
from mrl.data.idx import read_idx

Files = dict[str, bytes]


def nowhere(folder: Path) -> None:
    raise fetching.FetchError("nothing in reach")


@pytest.mark.parametrize("packed", [True, False])
def test_idx_round_trip(tmp_path: Path, packed: bool) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5))
    write_files(tmp_path, {"images": idx_bytes(array)}, packed=packed)
    path = tmp_path / ("images.gz" if packed else "images")
    assert (read_idx(path, num_axes=3).numpy() == array).all()


GOOD = idx_bytes(np.arange(12).reshape(3, 2, 2))
# mtime: each pytest worker must make the same bytes, whatever second it starts in.
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "starts with nothing"),
        (b"<html>", "starts with 3c68746d"),
        (GOOD[:10], "starts with 00000803"),
        (GOOD[:-1], "needs 12 bytes, but it has 11"),
        (GOOD + b"x", "needs 12 bytes, but it has more"),
        (GOOD[:4] + b"\xff" * 12, "is larger than any data set"),
        (idx_bytes(np.arange(3)), "not with 00000803"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], "not with 00000803"),
    ],
)
def test_bad_idx_content_names_the_file(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(DataError, match=f"{tmp_path}/images.*{reason}"):
        read_idx(tmp_path / "images", num_axes=3)


@pytest.mark.parametrize(
    "packed",
    [b"no gzip", PACKED[:-9], PACKED[:12] + bytes(20)],
    ids=["no gzip", "cut short", "rubbish inside"],
)
def test_bad_gzip_names_the_file(tmp_path: Path, packed: bytes) -> None:
    (tmp_path / "images.gz").write_bytes(packed)
    with pytest.raises(DataError, match=f"cannot use {tmp_path}/images.gz"):
        read_idx(tmp_path / "images.gz", num_axes=3)


@pytest.mark.parametrize("start", [b"", GOOD], ids=["zeros", "a good file, then zeros"])
def test_a_small_file_that_unpacks_to_gigabytes_is_not_unpacked(
    tmp_path: Path, start: bytes
) -> None:
    part = gzip.compress(bytes(2**26), mtime=0)  # files of several parts are good gzip
    (tmp_path / "images.gz").write_bytes(gzip.compress(start, mtime=0) + 32 * part)
    tracemalloc.start()
    with pytest.raises(DataError, match="starts with 00000000|but it has more"):
        read_idx(tmp_path / "images.gz", num_axes=3)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**20


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folder", ["fashion-mnist", "FashionMNIST/raw", "."])
def test_local_files_come_first(
    tmp_path: Path,
    small_fashion_mnist: Files,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    packed: bool,
) -> None:
    def unwanted(folder: Path) -> None:
        raise AssertionError("fetched although the files are there")

    monkeypatch.setattr(fashion_mnist, "SOURCES", (("fake", unwanted),))
    write_files(tmp_path / folder, small_fashion_mnist, packed=packed)
    splits = fashion_mnist.load(tmp_path)
    assert splits["train"][0].shape == (50, 1, 28, 28)
    assert splits["test"][1].tolist() == [i % 10 for i in range(20)]


def test_wrong_checksum_is_refused(tmp_path: Path, small_fashion_mnist: Files) -> None:
    name = "t10k-images-idx3-ubyte"
    changed = bytearray(small_fashion_mnist[name])
    changed[-1] ^= 1
    write_files(tmp_path, small_fashion_mnist | {name: bytes(changed)})
    with pytest.raises(DataError, match=f"{name}.gz: the SHA-256 of its content is"):
        fashion_mnist.load(tmp_path)


def test_sources_are_tried_in_order(
    tmp_path: Path, small_fashion_mnist: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def source(label: str, files: Files | None) -> tuple[str, Callable[[Path], None]]:
        def fetch(folder: Path) -> None:
            tried.append(label)
            if files is None:
                nowhere(folder)
            else:
                write_files(folder, files)

        return label, fetch

    damaged = small_fashion_mnist | {"t10k-labels-idx1-ubyte": b"<html>"}
    incomplete = dict(list(small_fashion_mnist.items())[:3])
    sources = [("offline", None), ("damaged", damaged), ("incomplete", incomplete)]
    sources += [("good", small_fashion_mnist), ("spare", small_fashion_mnist)]
    monkeypatch.setattr(fashion_mnist, "SOURCES", tuple(source(*s) for s in sources))
    assert len(fashion_mnist.load(tmp_path / "new" / "root")["train"][1]) == 50
    assert tried == ["offline", "damaged", "incomplete", "good"]
    # Only the four good files are left, and a second time nothing is fetched.
    assert [p.name for p in (tmp_path / "new" / "root").iterdir()] == ["fashion-mnist"]
    fashion_mnist.load(tmp_path / "new" / "root")
    assert len(tried) == 4


def test_nothing_found_names_the_three_ways(
    tmp_path: Path, small_fashion_mnist: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fashion_mnist, "SOURCES", (("one", nowhere), ("two", nowhere)))
    with pytest.raises(DataError) as caught:
        fashion_mnist.load(tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path), "one: nothing in reach", "two: nothing", "1. put", "2. run", "3. "):
        assert part in message
    with pytest.raises(DataError, match="not tried, because data.download=false"):
        fashion_mnist.load(tmp_path, download=False)


@pytest.mark.parametrize("obstacle", ["file", "read-only"])
def test_unwritable_folder_is_named(
    tmp_path: Path, small_fashion_mnist: Files, obstacle: str
) -> None:
    root = tmp_path / "root"
    if obstacle == "file":
        root.write_text("in the way")
    else:
        if os.geteuid() == 0:
            # Root may write everywhere but here.
            root = Path("/proc/fashion-mnist-test")
        else:
            root.mkdir(mode=0o500)
    with pytest.raises(DataError, match=f"cannot write to the data folder {root}.*data.root="):
        fashion_mnist.load(root)


@pytest.fixture
def mirror(
    tmp_path: Path, small_fashion_mnist: Files, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of a real HTTP server that stands in for the mirror."""
    folder = tmp_path / "mirror"
    write_files(folder, small_fashion_mnist)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sums = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())
    ]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", sums)
    url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [f"{url}none/", url])
    monkeypatch.setattr(fashion_mnist, "SOURCES", fashion_mnist.SOURCES[:1])
    yield folder
    server.shutdown()
    server.server_close()


def test_download_from_the_second_mirror(tmp_path: Path, mirror: Path) -> None:
    assert len(fashion_mnist.load(tmp_path / "root")["test"][1]) == 20


def test_download_with_another_md5_is_refused(tmp_path: Path, mirror: Path) -> None:
    # Packed anew, the content is right, but it is not the published file.
    path = mirror / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), mtime=1))
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz has MD5"):
        fashion_mnist.load(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_silent_host_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(fetching, "CONNECT_SECONDS", 0.05)
    monkeypatch.setattr(fetching.urllib.request, "urlopen", lambda *a, **k: never.wait(5))
    with pytest.raises(TimeoutError, match=r"no connection within 0\.05 s"):
        fetching.download("http://silent/file", tmp_path / "file", md5="")
    never.set()


FAKE_APT = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *lists*update*) exit 0 ;;
  *lists*download*) {then} ;;
  *) echo 'E: Unable to locate package' >&2; exit 100 ;;
esac
"""
FAKE_DPKG = """#!/bin/sh
mkdir -p $3/usr/share/datasets/fashion-mnist
cp {files}/* $3/usr/share/datasets/fashion-mnist/
"""


def fake_tools(folder: Path, then: str) -> Path:
    tools = folder / "bin"
    tools.mkdir()
    log = folder / "apt.log"
    for name, text in (
        ("apt-get", FAKE_APT.format(log=log, then=then)),
        ("dpkg-deb", FAKE_DPKG.format(files=folder / "files")),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return log


@pytest.fixture
def only_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "INSTALLED", Path("/usr/share/datasets/fashion-mnist"))
    monkeypatch.setattr(fashion_mnist, "find", lambda root: None)
    monkeypatch.setattr(fashion_mnist, "SOURCES", fashion_mnist.SOURCES[1:])
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")


def test_debian_package_with_private_lists(
    tmp_path: Path, small_fashion_mnist: Files, only_debian: None
) -> None:
    write_files(tmp_path / "files", small_fashion_mnist)
    log = fake_tools(tmp_path, then="touch package.deb")
    assert len(fashion_mnist.load(tmp_path / "root")["train"][1]) == 50
    calls = log.read_text().splitlines()
    download = f"download {fashion_mnist.PACKAGE}"
    assert [call.endswith(download) for call in calls] == [True, False, True]
    assert "Dir::State::lists=" not in calls[0]
    assert all("Dir::State::lists=" in call for call in calls[1:])


def test_debian_package_out_of_reach(
    tmp_path: Path, small_fashion_mnist: Files, only_debian: None
) -> None:
    fake_tools(tmp_path, then="echo 'E: Failed to fetch' >&2; exit 100")
    with pytest.raises(DataError, match="apt-get failed: E: Failed to fetch"):
        fashion_mnist.load(tmp_path / "root")


def test_machine_without_apt(
    tmp_path: Path,
    small_fashion_mnist: Files,
    only_debian: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="this machine has no apt-get"):
        fashion_mnist.load(tmp_path / "root")


def test_the_real_files() -> None:
    root = Path(os.environ.get("MRL_DATA", Path(__file__).parents[2] / "data"))
    if fashion_mnist.find(root) is None:
        pytest.skip(f"Fashion-MNIST is not in {root}; python scripts/get_data.py fetches it")
    splits = fashion_mnist.load(root, download=False)
    for split, count in (("train", 60000), ("test", 10000)):
        images, labels = splits[split]
        assert images.shape == (count, 1, 28, 28)
        assert labels.bincount().tolist() == [count // 10] * 10
    pixels = splits["train"][0].double() / 255
    assert abs(float(pixels.mean()) - 0.2860) < 5e-5
    assert abs(float(pixels.std()) - 0.3530) < 5e-5


def test_script_runs_from_a_bare_checkout(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "scripts" / "get_data.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = ["--root", str(tmp_path), "--no-download"]
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    if fashion_mnist.INSTALLED.is_dir():
        assert done.returncode == 0
    else:
        assert done.returncode == 1
        assert "There are three ways to get it" in done.stderr

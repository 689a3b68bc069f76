"""Fetching files: over HTTP, or out of a Debian package, in bounded time and without root."""

import hashlib
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

from mrl.progress import progress

CONNECT_SECONDS = 8  # all addresses and the name look-up together
STALL_SECONDS = 30  # without a single byte, once connected
APT_SECONDS = 300


class FetchError(Exception):
    """One way of fetching did not work; the next one is tried."""


def download(url: str, path: Path, md5: str) -> None:
    """Write what is at ``url`` to ``path``.

    Raises:
        FetchError: if it ends early or its MD5 is another one.
        OSError: if there is no connection, or it stalls.
    """
    digest = hashlib.md5(usedforsecurity=False)
    with _open(url) as response, path.open("wb") as file:
        size = int(response.headers.get("Content-Length", 0)) or None
        with progress(path.name, size, "B", leave=True) as bar:
            while block := response.read(1 << 16):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
    if digest.hexdigest() != md5:
        raise FetchError(f"{url} has MD5 {digest.hexdigest()}, not {md5}")


def _open(url: str) -> Any:
    """``urlopen`` that gives up after CONNECT_SECONDS in all.

    Its own time-out holds for each address of a host and not for the name look-up, so behind a
    firewall that drops packets it can take minutes.
    """
    answer: queue.Queue[Any] = queue.Queue()

    def connect() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=STALL_SECONDS))
        except HTTPException as error:
            answer.put(FetchError(f"{url}: {error!r}"))
        except Exception as error:  # handed to the waiting thread
            answer.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        result = answer.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no connection within {CONNECT_SECONDS} s") from None
    if isinstance(result, Exception):
        raise result
    return result


@contextmanager
def debian_package(name: str) -> Iterator[Path]:
    """A temporary folder with the files of a Debian package, which is not installed.

    Raises:
        FetchError: where there is no apt, or it cannot reach the package.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FetchError(f"this machine has no {tool}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        package = _apt_download(name, folder)
        _run("dpkg-deb", "-x", str(package), str(folder / "unpacked"), cwd=folder)
        yield folder / "unpacked"


def _apt_download(name: str, folder: Path) -> Path:
    """Download the .deb into ``folder``, with the machine's package lists or else private ones."""
    apt = ["apt-get", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    try:
        _run(*apt, "download", name, cwd=folder)
    except FetchError:
        # The machine's lists are empty or out of date, and only root could renew those.
        for private in ("lists/partial", "cache/archives/partial"):
            (folder / private).mkdir(parents=True)
        apt += ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
        # As root, apt would drop to a user who may not enter this folder.
        apt += ["-o", "APT::Sandbox::User=root"]
        # Where it reaches nothing, update warns and yet succeeds.
        warnings = _run(*apt, "update", cwd=folder)
        try:
            _run(*apt, "download", name, cwd=folder)
        except FetchError as error:
            raise FetchError(f"{error} ({_last_line(warnings)})") from error
    return next(folder.glob("*.deb"))


def _run(*command: str, cwd: Path) -> str:
    """What the command wrote to stderr, if it succeeded."""
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=APT_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{command[0]} took more than {APT_SECONDS} s") from error
    if done.returncode != 0:
        raise FetchError(f"{command[0]} failed: {_last_line(done.stderr)}")
    return done.stderr


def _last_line(messages: str) -> str:
    """The last error or warning of apt that tells a reason."""
    lines = [line for line in messages.splitlines() if line.startswith(("E:", "W:"))]
    reasons = [line for line in lines if "Some index files failed" not in line]
    return (reasons or messages.splitlines() or ["no message"])[-1].strip()

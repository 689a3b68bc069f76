"""Configs, idx files and pictures for the tests of mrl.data."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from idx_files import idx_bytes
from make_betons import write_betons
from PIL import Image

from mrl.config import DataConfig, DatasetName
from mrl.data import fashion_mnist


@pytest.fixture
def data_config(tmp_path: Path) -> Callable[..., DataConfig]:
    def make(name: str = "synthetic", **changes: Any) -> DataConfig:
        values = {"root": str(tmp_path), "image_size": 8, "holdout": 4, "flip": True} | changes
        return DataConfig(name=DatasetName[name], **values)

    return make


@pytest.fixture
def small_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Stand-ins for the four files, and their checksums in place of the real ones."""
    random = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", 50), ("t10k", 20)):
        files[f"{prefix}-images-idx3-ubyte"] = idx_bytes(random.integers(0, 256, (count, 28, 28)))
        files[f"{prefix}-labels-idx1-ubyte"] = idx_bytes(np.arange(count) % 10)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(fashion_mnist, "SHA256", sums)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", Path("/nonexistent/fashion-mnist"))
    return files


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """train/ (5 of each class) and test/ (3 of each) of noisy JPEGs; classes cat and dog."""
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 5), ("test", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (40 + i, 50, 3), generator=random)
                Image.fromarray(pixels.numpy().astype(np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path / "pictures"


@pytest.fixture
def betons(pictures: Path) -> Path:
    """The pictures, and the same in FFCV's format: half of them as JPEG."""
    pytest.importorskip("ffcv", reason="FFCV is not installed: bash scripts/install_ffcv.sh")
    return write_betons(pictures)

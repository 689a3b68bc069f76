"""The feature cache: used when nothing changed, and only then."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mrl.data import ImageDataset
from mrl.evaluation.contract import Features
from mrl.evaluation.features import describe, extract
from mrl.heads import NestedHead
from mrl.model import MRLModel

IMAGES = torch.randint(256, (11, 1, 2, 2), dtype=torch.uint8)
DATASET = ImageDataset(images=IMAGES, labels=torch.arange(11) % 3, classes=["a", "b", "c"])


class CountingLoader:
    """Batches of 4, and how often they were asked for."""

    steps = 3

    def __init__(self) -> None:
        self.passes = 0

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        yield from zip(IMAGES.float().split(4), DATASET.labels.split(4), strict=True)


class Fixture:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loader = CountingLoader()
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.model = MRLModel(backbone, NestedHead(6, 3, [2, 6]))

    def extract(self, split: str = "test", dataset: ImageDataset = DATASET) -> Features:
        manifest = describe(
            self.model, dataset, name="toy", split=split, transform={"image_size": 2}
        )
        return extract(self.model, self.loader, manifest, self.folder, device=torch.device("cpu"))

    @property
    def entry(self) -> Path:
        (entry,) = self.folder.iterdir()
        return entry


@pytest.fixture
def cache(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path / "features")


def test_encodes_in_eval_mode_and_once(cache: Fixture) -> None:
    first = cache.extract()
    expected = cache.model.eval().encode(IMAGES.float())
    torch.testing.assert_close(first.z, expected)
    assert torch.equal(first.labels, DATASET.labels)
    second = cache.extract()
    assert cache.loader.passes == 1
    assert torch.equal(first.z, second.z)
    assert sorted(p.name for p in cache.entry.iterdir()) == [
        "embeddings.npy",
        "labels.npy",
        "manifest.json",
    ]
    second.z.zero_()  # of the copy in memory; the file stays
    assert torch.equal(cache.extract().z, first.z)


def test_changed_weights_buffers_split_or_images_are_encoded_anew(cache: Fixture) -> None:
    cache.extract()
    with torch.no_grad():
        cache.model.backbone[1].weight[0, 0] += 1e-6
    cache.extract()
    assert cache.loader.passes == 2
    cache.model.backbone[2].running_mean += 1
    cache.extract()
    assert cache.loader.passes == 3
    cache.extract(split="holdout")
    assert cache.loader.passes == 4
    other = ImageDataset(images=255 - IMAGES, labels=DATASET.labels, classes=DATASET.classes)
    cache.extract(dataset=other)
    assert cache.loader.passes == 5


@pytest.mark.parametrize("name", ["embeddings.npy", "labels.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "removed", "empty"])
def test_damaged_entry_is_made_again(cache: Fixture, name: str, damage: str) -> None:
    first = cache.extract().z.clone()
    file = cache.entry / name
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5] if damage == "truncated" else b"")
    assert torch.equal(cache.extract().z, first)
    assert cache.loader.passes == 2
    assert np.load(cache.entry / "embeddings.npy").shape == (11, 6)


def test_failure_leaves_no_entry(cache: Fixture) -> None:
    with torch.no_grad():
        cache.model.backbone[1].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite embeddings, first among images 0 to 3"):
        cache.extract()
    assert list(cache.folder.iterdir()) == []

"""The table of data sets, the held-out slice, and the data sets made or scanned here."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from idx_files import write_files

from mrl.config import DataConfig, DatasetName, TrainConfig
from mrl.data import DataError, ImageDataset, load_splits
from mrl.data.datasets import SOURCES, hold_out, resize
from mrl.data.synthetic import class_patterns

MakeConfig = Callable[..., DataConfig]


def dataset(count: int) -> ImageDataset:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageDataset(images=pixels, labels=torch.arange(count) % 3, classes=["a", "b", "c"])


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_the_classes_are_refused(label: int) -> None:
    with pytest.raises(DataError, match=f"label {label} at index 1 .* 3 classes 0..2"):
        ImageDataset(
            images=torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            labels=torch.tensor([0, label]),
            classes=["a", "b", "c"],
        )


def test_holdout_is_disjoint_complete_and_always_the_same() -> None:
    torch.manual_seed(1)
    train, holdout = hold_out(dataset(30), 7)
    torch.manual_seed(2)
    again = hold_out(dataset(30), 7)[1]
    assert torch.equal(holdout.images, again.images)
    assert (len(train), len(holdout)) == (23, 7)
    everything = torch.cat([train.images, holdout.images]).flatten()
    assert everything.sort().values.tolist() == list(range(30))
    for part in (train, holdout):  # labels went along
        assert torch.equal(part.labels, part.images.flatten().long() % 3)


@pytest.mark.parametrize("count", [-1, 30, 31])
def test_impossible_holdout_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=rf"data.holdout={count} .* 30 training images"):
        hold_out(dataset(30), count)


def test_synthetic_is_deterministic_and_learnable(data_config: MakeConfig) -> None:
    cfg = data_config(num_classes=5, num_images=60, holdout=10)
    torch.manual_seed(1)
    splits = load_splits(cfg)
    torch.manual_seed(2)
    again = load_splits(cfg)
    for part, other in ((splits.train, again.train), (splits.test, again.test)):
        assert torch.equal(part.images, other.images)
        assert torch.equal(part.labels, other.labels)
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (50, 10, 15)
    assert splits.test.labels.bincount().tolist() == [3] * 5
    assert splits.in_channels == splits.test.images.shape[1] == len(splits.pixels.mean) == 3
    # Nothing is learnt from memory: the test images are others.
    assert not (splits.test.images[:, None] == splits.train.images).flatten(2).all(2).any()
    distance = torch.cdist(splits.test.images.float().flatten(1), class_patterns(5, 8).flatten(1))
    assert torch.equal(distance.argmin(1), splits.test.labels)


def test_synthetic_needs_an_image_of_each_class(data_config: MakeConfig) -> None:
    with pytest.raises(DataError, match="got 5 classes and 4 images"):
        load_splits(data_config(num_classes=5, num_images=4))


def test_fashion_mnist_splits(
    data_config: MakeConfig, tmp_path: Path, small_fashion_mnist: dict[str, bytes]
) -> None:
    write_files(tmp_path, small_fashion_mnist)
    splits = load_splits(data_config("fashion_mnist", image_size=32, holdout=5))
    assert splits.train.images.shape == (45, 1, 32, 32)
    assert splits.test.images.dtype == torch.uint8
    assert splits.in_channels == 1
    assert splits.classes[9] == "Ankle boot"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_splits(data_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    def fake(root: Path, train: bool, download: bool) -> SimpleNamespace:
        return SimpleNamespace(data=pixels, targets=[0, 1, 0, 1, 0, 1], classes=["x", "y"])

    monkeypatch.setattr(torchvision.datasets, name.upper(), fake)
    splits = load_splits(data_config(name, image_size=32, holdout=0))
    assert (splits.test.images[4, 2].numpy() == pixels[4, :, :, 2]).all()
    assert splits.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert (len(splits.holdout), splits.classes, splits.in_channels) == (0, ["x", "y"], 3)


def test_missing_cifar_is_explained(data_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"cannot get CIFAR10 in {tmp_path}: .*data.download=true"):
        load_splits(data_config("cifar10", download=False))


def test_resize_keeps_the_mean_and_the_type() -> None:
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    assert resize(images, 28) is images
    small = resize(images, 14)
    assert (small.shape, small.dtype) == ((3, 1, 14, 14), torch.uint8)
    assert torch.allclose(small.float().mean((1, 2, 3)), images.float().mean((1, 2, 3)), atol=3)


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("fashion_mnist", {"num_classes": 10}, "data.num_classes"),
        ("cifar10", {"num_images": 10}, "data.num_images"),
        ("imagefolder", {"pad": 2}, "data.pad=2"),
    ],
)
def test_keys_without_effect_are_refused(
    data_config: MakeConfig, name: str, changes: dict[str, int], key: str
) -> None:
    with pytest.raises(DataError, match=key):
        load_splits(data_config(name, **changes))


def test_image_folder_splits(data_config: MakeConfig, pictures: Path) -> None:
    (pictures / "train" / "cat" / "notes.txt").write_text("not a picture")
    (pictures / "train" / ".cache").mkdir()
    splits = load_splits(data_config("imagefolder", root=str(pictures), holdout=2))
    assert (len(splits.train), len(splits.holdout), len(splits.test)) == (8, 2, 6)
    assert splits.classes == ["cat", "dog"]
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for part in (splits.train, splits.holdout, splits.test):
        names = [Path(path.decode()).parent.name for path in part.images]
        assert names == [splits.classes[label] for label in part.labels]


def test_image_folder_takes_val_where_test_has_no_classes(
    data_config: MakeConfig, pictures: Path
) -> None:
    (pictures / "test").rename(pictures / "val")
    (pictures / "test").mkdir()
    splits = load_splits(data_config("imagefolder", root=str(pictures)))
    assert b"/val/" in splits.test.images[0]


def remove(folder: Path) -> None:
    folder.rename(folder.parent / f".{folder.name}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: remove(root / "train"), "no class folders in .*/train"),
        (lambda root: remove(root / "test"), "needs test/CLASS/ or val/CLASS/"),
        (lambda root: remove(root / "test" / "cat"), "only in train: cat; only in test: none"),
        (lambda root: (root / "test" / "emu").mkdir(), "no images in .*/test/emu"),
    ],
)
def test_image_folder_with_missing_parts(
    data_config: MakeConfig, pictures: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(pictures)
    with pytest.raises(DataError, match=message):
        load_splits(data_config("imagefolder", root=str(pictures)))


@pytest.mark.parametrize("name", [member.name for member in DatasetName])
def test_every_data_set_has_a_source_and_a_config(
    compose_train: Callable[..., TrainConfig], name: str
) -> None:
    cfg = compose_train("name=test", f"data={name}").data
    assert cfg.name.name == name
    assert name in SOURCES

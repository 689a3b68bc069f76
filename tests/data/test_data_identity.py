"""A data set is known by its content: what changes it, and what does not."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mrl.data import DataError, ImageDataset, load_splits
from mrl.data.datasets import in_class_order
from mrl.data.identity import identify, names_of
from mrl.data.image_folder import scan


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8 + i, 8), (i, 0, 0)).save(folder / f"{i}.png")
    return tmp_path / "data"


def train_of(root):
    (paths, labels, classes), _ = scan(root)
    return ImageDataset(images=paths, labels=labels, classes=classes, root=root)


def rewritten(root):
    path = root / "train/cat/0.png"
    content, before = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(before, before + 1))


def exchanged(root):
    a, b = root / "train/cat/0.png", root / "train/dog/5.png"
    a.rename(root / "x")
    b.rename(a)
    (root / "x").rename(b)


def added(root):
    shutil.copy(root / "train/cat/0.png", root / "train/cat/00.png")


@pytest.mark.parametrize(
    ("change", "same_content", "same_exactly"),
    [
        (lambda root: None, True, True),
        (rewritten, True, False),
        (exchanged, False, False),
        (added, False, False),
        (lambda root: (root / "train/cat/3.png").unlink(), False, False),
        (lambda root: (root / "train/cat/3.png").rename(root / "train/dog/9.png"), False, False),
        (lambda root: Image.new("RGB", (99, 99)).save(root / "train/cat/0.png"), False, False),
    ],
    ids=["nothing", "rewritten", "exchanged", "added", "removed", "another class", "resized"],
)
def test_what_changes_a_folder(root, change, same_content, same_exactly):
    before = identify(train_of(root))
    change(root)
    after = identify(train_of(root))
    assert (after.content == before.content) == same_content
    assert (after.exact == before.exact) == same_exactly


def test_folders_of_an_archive_that_changed_places(tmp_path):
    """One size and one time for all: only which files they are tells them apart."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name / f"{i}.bmp")
            os.utime(tmp_path / name / f"{i}.bmp", (0, 0))

    def known():
        paths = [str(tmp_path / n / f"{i}.bmp").encode() for n in ("cat", "dog") for i in range(3)]
        labels = torch.tensor([0, 0, 0, 1, 1, 1])
        images = np.array(paths, dtype=np.bytes_)
        return identify(
            ImageDataset(images=images, labels=labels, classes=["cat", "dog"], root=tmp_path)
        )

    before = known()
    (tmp_path / "cat").rename(tmp_path / "x")
    (tmp_path / "dog").rename(tmp_path / "cat")
    (tmp_path / "x").rename(tmp_path / "dog")
    assert known().exact != before.exact


def test_a_copy_elsewhere_has_the_same_content(root, tmp_path, monkeypatch):
    shutil.copytree(root, tmp_path / "a much longer name")
    before = identify(train_of(root)).content
    assert identify(train_of(tmp_path / "a much longer name")).content == before
    monkeypatch.chdir(root)
    relative = train_of(type(root)("."))
    assert identify(relative).content == before
    assert names_of(relative)[0] == "train/cat/0.png"


def test_pixels_and_labels_in_memory():
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    dataset = ImageDataset(images=images, labels=labels, classes=["a", "b"])
    before = identify(dataset)
    assert before == identify(dataset.subset(torch.arange(4)))
    assert before != identify(dataset.subset(torch.tensor([1, 0, 2, 3])))
    images[3, 0, 1, 1] = 1
    assert before != identify(dataset)
    assert names_of(dataset) is None


def test_a_file_that_went_away_is_named(root):
    dataset = train_of(root)
    (root / "train/dog/2.png").unlink()
    with pytest.raises(DataError, match=r"cannot read an image: .*dog/2.png"):
        identify(dataset)


def test_the_held_out_images_stay_held_out(root, data_config):
    cfg = data_config("imagefolder", root=str(root), holdout=4)
    first = load_splits(cfg)
    noted = {"classes": first.classes, "holdout": names_of(first.holdout)}
    added(root)
    grown = load_splits(cfg, noted)
    assert names_of(grown.holdout) == noted["holdout"]
    assert {*names_of(grown.train)} == {*names_of(first.train), "train/cat/00.png"}
    (root / noted["holdout"][0]).unlink()
    assert load_splits(cfg, noted).lost == [noted["holdout"][0]]


def test_classes_in_another_order_are_matched_by_name():
    images = np.array([b"b/1", b"b/2", b"a/1"])
    dataset = ImageDataset(images=images, labels=torch.tensor([0, 0, 1]), classes=["b", "a"])
    matched = in_class_order(dataset, ["a", "b"])
    assert matched.classes == ["a", "b"]
    assert matched.images.tolist() == [b"a/1", b"b/1", b"b/2"]
    assert matched.labels.tolist() == [0, 1, 1]
    for classes in (["a", "c"], ["a"], ["b", "a"]):
        assert in_class_order(dataset, classes) is dataset

"""Image files that cannot be decoded or read, and augmentation by timm, in the torch loader."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mrl.config import DataConfig, OnCorrupt
from mrl.data import DataError, Loader, build_loader, load_splits

MakeConfig = Callable[..., DataConfig]
BROKEN = Path("train/dog/2.jpg")


@pytest.fixture
def make(data_config: MakeConfig, pictures: Path) -> Callable[..., Loader]:
    def loader(*, train: bool, batch_size: int = 5, seed: int = 0, **changes: Any) -> Loader:
        values = {"root": str(pictures), "image_size": 16, "holdout": 0} | changes
        cfg = data_config("imagefolder", **values)
        splits = load_splits(cfg)
        return build_loader(
            splits.train,
            cfg=cfg,
            pixels=splits.pixels,
            batch_size=batch_size,
            train=train,
            seed=seed,
        )

    return loader


@pytest.fixture(params=[b"no picture", None], ids=["garbage", "truncated"])
def broken(request: pytest.FixtureRequest, pictures: Path) -> Path:
    path = pictures / BROKEN
    path.write_bytes(request.param or path.read_bytes()[:-600])
    return path


SKIP = {"on_corrupt": OnCorrupt["skip"]}


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_keeps_images_and_labels_together(
    make: Callable[..., Loader], broken: Path, workers: int
) -> None:
    path = broken
    good = path.with_name("1.jpg").read_bytes()
    with pytest.warns(UserWarning, match="skipped") as caught:
        batches = list(make(train=False, workers=workers, **SKIP).batches(0))
    messages = [str(w.message) for w in caught]
    assert len([m for m in messages if f"skipped, 1 so far: cannot decode the image {path}" in m])
    assert "1 of 10 images were skipped in evaluation" in messages[-1]
    path.write_bytes(good)
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    whole = list(make(train=False).batches(0))
    kept = torch.arange(10) != 7  # five cats, then dogs 0 and 1
    assert torch.equal(images, torch.cat([i for i, _ in whole])[kept])
    assert torch.equal(labels, torch.cat([label for _, label in whole])[kept])


def test_a_file_is_named_once(make: Callable[..., Loader], broken: Path) -> None:
    loader = make(train=True, **SKIP)
    with pytest.warns(UserWarning, match="2.jpg"):
        assert sum(len(labels) for _, labels in loader.batches(0)) == 9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(len(labels) for _, labels in loader.batches(1)) == 9


def test_the_other_images_are_as_if_nothing_was_missing(
    make: Callable[..., Loader], pictures: Path
) -> None:
    whole = [pair for batch in make(train=True).batches(0) for pair in zip(*batch, strict=True)]
    (pictures / BROKEN).write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped"):
        rest = [pair for b in make(train=True, **SKIP).batches(0) for pair in zip(*b, strict=True)]
    assert len(rest) == 9
    for image, label in rest:
        assert [int(label)] == [int(other) for seen, other in whole if torch.equal(image, seen)]


def test_a_batch_that_loses_all_its_images(make: Callable[..., Loader], broken: Path) -> None:
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(DataError, match="not one image of a batch can be decoded.*2.jpg"),
    ):
        list(make(train=True, batch_size=1, **SKIP).batches(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_fatal_says_which_and_nothing_of_workers(
    make: Callable[..., Loader], broken: Path, workers: int
) -> None:
    with pytest.raises(DataError) as caught:
        list(make(train=True, workers=workers).batches(0))
    assert str(caught.value).startswith(f"cannot decode the image {broken}")
    assert "data.on_corrupt=skip" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_file_is_never_skipped(
    make: Callable[..., Loader], pictures: Path, workers: int
) -> None:
    loader = make(train=True, workers=workers, **SKIP)
    (pictures / BROKEN).unlink()
    with pytest.raises(DataError, match="^cannot read the image .*2.jpg"):
        list(loader.batches(0))


def joined(loader: Loader, epoch: int, start: int = 0) -> Tensor:
    return torch.cat([images for images, _ in loader.batches(epoch, start)])


def test_rand_augment_is_pure(make: Callable[..., Loader]) -> None:
    policy = {"rand_augment": "rand-m9-mstd0.5-inc1"}
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = joined(make(train=True, **policy), 0)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())
    random.seed(2)
    np.random.seed(2)
    assert torch.equal(first, joined(make(train=True, workers=2, **policy), 0))
    assert torch.equal(first[5:], joined(make(train=True, **policy), 0, start=1))
    changed = (first != joined(make(train=True), 0)).flatten(1).any(1)
    assert changed.float().mean() > 0.5
    # Evaluation is left alone.
    assert torch.equal(joined(make(train=False, **policy), 0), joined(make(train=False), 0))


def test_progressive_sizes(make: Callable[..., Loader]) -> None:
    ramp = {"train_sizes": [8, 40], "ramp_epochs": [0, 2]}
    loader = make(train=True, **ramp)
    assert [joined(loader, epoch).shape[-1] for epoch in range(4)] == [8, 32, 40, 40]
    assert joined(make(train=False, **ramp), 0).shape[-1] == 16

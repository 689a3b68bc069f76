"""Keys of the data section that cannot be used, each refused before anything is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrl.config import DataConfig, LoaderName, OnCorrupt
from mrl.data import DataError, load_splits
from mrl.data.checks import check

MakeConfig = Callable[..., DataConfig]
FFCV = {"loader": LoaderName["ffcv"]}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fashion_mnist", FFCV, "data.loader=ffcv .* fashion_mnist is kept in memory"),
        ("cifar10", {"on_corrupt": OnCorrupt["skip"]}, "data.on_corrupt=skip"),
        ("synthetic", {"classes": "list.txt"}, "data.classes=list.txt is for .*imagefolder"),
        ("synthetic", {"train_sizes": [8, 16]}, r"data.train_sizes=\[8, 16\]"),
        ("synthetic", {"rand_augment": "rand-m9"}, "data.rand_augment=rand-m9"),
        ("imagefolder", {"quasi_random": True}, "data.quasi_random=True .* data.loader=ffcv"),
        ("imagefolder", {"os_cache": False}, "data.os_cache=False .* data.loader=ffcv"),
        ("imagefolder", FFCV | {"on_corrupt": OnCorrupt["skip"]}, "--skip-corrupt"),
        ("imagefolder", FFCV | {"rand_augment": "rand-m9"}, "needs data.loader=torch"),
        ("imagefolder", {"rand_augment": "rotate"}, "data.rand_augment=rotate is no policy"),
        ("imagefolder", {"rand_augment": "rand-q9"}, "data.rand_augment=rand-q9 is no policy"),
        ("imagefolder", {"train_sizes": [128, 160]}, "data.ramp_epochs=None need each other"),
        ("imagefolder", {"ramp_epochs": [1, 2]}, "data.train_sizes=None and .* give both"),
        (
            "imagefolder",
            {"train_sizes": [0, 160], "ramp_epochs": [1, 2]},
            r"two sizes in pixels, got \[0, 160\]",
        ),
        (
            "imagefolder",
            {"train_sizes": [128, 160], "ramp_epochs": [3, 2]},
            r"two epochs, the first not later, got \[3, 2\]",
        ),
    ],
)
def test_refused(data_config: MakeConfig, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_splits(data_config(name, **changes))


def test_what_works_passes(data_config: MakeConfig) -> None:
    ramp = {"train_sizes": [128, 160], "ramp_epochs": [1, 2]}
    check(data_config("imagefolder", rand_augment="rand-m9-mstd0.5-inc1", **ramp))
    check(data_config("imagefolder", **FFCV, os_cache=False, quasi_random=True, **ramp))


def test_classes_choose_folders_and_their_order(data_config: MakeConfig, pictures: Path) -> None:
    for split in ("train", "test"):
        (pictures / split / "cat").rename(pictures / split / "emu")
        (pictures / split / "broken").mkdir()  # not among the chosen ones: may be empty
    listed = pictures / "classes.txt"
    listed.write_text("emu\n\ndog\n")
    cfg = data_config("imagefolder", root=str(pictures), classes=str(listed))
    splits = load_splits(cfg)
    assert splits.classes == ["emu", "dog"]
    assert splits.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    names = [Path(path.decode()).parent.name for path in splits.test.images]
    assert names == ["emu"] * 3 + ["dog"] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\nfox\n", "data.classes lists fox, of which .*/train has no folders"),
        ("cat\ndog\ncat\n", "repeats cat"),
        ("\n", "is empty"),
        (None, "cannot read the list of classes"),
    ],
)
def test_unusable_classes(
    data_config: MakeConfig, pictures: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (pictures / "list.txt").write_text(content)
    cfg = data_config("imagefolder", root=str(pictures), classes=str(pictures / "list.txt"))
    with pytest.raises(DataError, match=message):
        load_splits(cfg)


def test_class_missing_in_val_only(data_config: MakeConfig, pictures: Path) -> None:
    (pictures / "test" / "dog").rename(pictures / "test" / ".dog")
    (pictures / "list.txt").write_text("dog\n")
    cfg = data_config("imagefolder", root=str(pictures), classes=str(pictures / "list.txt"))
    with pytest.raises(DataError, match="dog, of which .*/test has no folders"):
        load_splits(cfg)

"""The FFCV and the torch loader see the same images, and train the same models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grey_batches import joined, make_loader
from interrupts import stop_at
from make_betons import write_betons
from PIL import Image

from mrl.config import DataConfig, LoaderName, TrainConfig
from mrl.data import build_loader, load_splits

MakeConfig = Callable[..., DataConfig]
pytest.importorskip("ffcv", reason="FFCV is not installed: bash scripts/install_ffcv.sh")


@pytest.fixture
def wnids(tmp_path: Path) -> Path:
    """A tree like ImageNet's: 4 classes, 60 + 15 JPEGs of 96 to 159 pixels each.

    A class is a coarse pattern, as in mrl.data.synthetic; weak against the noise, so that a model
    makes mistakes.
    """
    random = np.random.default_rng(0)
    patterns = random.integers(0, 2, (4, 4, 4, 3)) * 2.0 - 1
    for split, count in (("train", 60), ("val", 15)):
        for label in range(4):
            folder = tmp_path / "tree" / split / f"n0144{label:04d}"
            folder.mkdir(parents=True)
            for number in range(count):
                cells = 128 + 40 * patterns[label] + random.normal(0, 45, (4, 4, 3))
                size = tuple(int(side) for side in random.integers(96, 160, 2))
                picture = Image.fromarray(cells.clip(0, 255).astype(np.uint8))
                picture = picture.resize(size, Image.Resampling.BICUBIC)
                picture.save(folder / f"{number}.JPEG", quality=90)
    return write_betons(tmp_path / "tree")


def both(data_config: MakeConfig, root: Path, **changes: Any) -> tuple[DataConfig, DataConfig]:
    values = {"root": str(root), "image_size": 64, "holdout": 40} | changes
    return tuple(
        data_config("imagefolder", loader=LoaderName[name], **values) for name in ("torch", "ffcv")
    )


def test_training_sees_the_same_pictures_crops_and_labels(
    data_config: MakeConfig, wnids: Path
) -> None:
    torchs, ffcvs = (
        joined(make_loader(cfg, train=True, batch_size=20), epoch=3)
        for cfg in both(data_config, wnids)
    )
    assert torch.equal(torchs[1], ffcvs[1])
    difference = (torchs[0] - ffcvs[0]).abs().mean((1, 2, 3))
    # Measured: 0.6 grey levels on average, 1.4 at most for an image: FFCV averages over areas where
    # Pillow weighs with a triangle, its JPEG decoder rounds differently, and half of the images
    # were compressed once more. Another picture or another crop differs by 40.
    assert difference.mean() < 1.5 and difference.max() < 3
    for moment in (torch.mean, torch.std):
        assert abs(moment(torchs[0]) - moment(ffcvs[0])) < 1
    assert (torchs[0] - torchs[0].roll(1, 0)).abs().mean() > 20


@pytest.mark.parametrize("part", ["holdout", "test"])
def test_evaluation_sees_the_same(data_config: MakeConfig, wnids: Path, part: str) -> None:
    torchs, ffcvs = (
        joined(make_loader(cfg, train=False, batch_size=16, part=part))
        for cfg in both(data_config, wnids)
    )
    assert torch.equal(torchs[1], ffcvs[1])
    assert len(torchs[1]) == {"holdout": 40, "test": 60}[part]
    difference = (torchs[0] - ffcvs[0]).abs().mean((1, 2, 3))
    # Measured: 1.8 on average, 3.5 at most. As above; besides, torchvision scales first and then
    # crops at whole pixels of the result, so that its picture lies up to half a pixel away.
    assert difference.mean() < 3 and difference.max() < 6


def test_pictures_of_other_kinds_are_the_same(data_config: MakeConfig, tmp_path: Path) -> None:
    """Grey of 16 bits, palettes and alpha channels with something below them, CMYK, thin strips."""
    random = np.random.default_rng(0)
    cells = Image.fromarray(random.integers(0, 256, (6, 6, 4), dtype=np.uint8))
    picture = cells.resize((96, 96), Image.Resampling.BICUBIC)
    deep = Image.fromarray(np.asarray(picture.getchannel(0)).astype(np.uint16) * 257)
    for split in ("train", "val"):
        folder = tmp_path / "odd" / split / "all"
        folder.mkdir(parents=True)
        picture.save(folder / "alpha.png")
        deep.save(folder / "deep.png")
        picture.convert("P").save(folder / "palette.png", transparency=5)
        picture.convert("CMYK").save(folder / "ink.jpg", quality=95)
        picture.convert("L").save(folder / "grey.jpg", quality=95)
        picture.convert("RGB").resize((96, 16)).save(folder / "strip.png")
        picture.convert("RGB").resize((1, 1)).save(folder / "dot.png")
    write_betons(tmp_path / "odd")
    torchs, ffcvs = (
        joined(make_loader(cfg, train=False, part="test"))[0]
        for cfg in both(data_config, tmp_path / "odd", holdout=0)
    )
    assert len(torchs) == 7
    # Measured: 6.4 at most; as above, and the pictures are small and of more contrast.
    assert (torchs - ffcvs).abs().mean((1, 2, 3)).max() < 10
    assert (torchs - torchs.roll(1, 0)).abs().mean() > 40


def test_normalisation_is_the_same(data_config: MakeConfig, wnids: Path) -> None:
    torchs, ffcvs = both(data_config, wnids)
    means = []
    for cfg in (torchs, ffcvs):
        splits = load_splits(cfg)
        loader = build_loader(
            splits.test,
            cfg=cfg,
            pixels=splits.pixels,
            batch_size=60,
            train=False,
            seed=0,
        )
        images, _ = next(loader.batches(0))
        means.append(torch.stack([images.mean((0, 2, 3)), images.std((0, 2, 3))]))
    assert torch.allclose(means[0], means[1], atol=0.02)


def test_progressive_sizes(data_config: MakeConfig, wnids: Path) -> None:
    ramp = {"train_sizes": [32, 64], "ramp_epochs": [0, 2], "image_size": 40}
    _, cfg = both(data_config, wnids, **ramp)
    loader = make_loader(cfg, train=True, batch_size=20)
    assert [next(loader.batches(e))[0].shape[-1] for e in range(4)] == [32, 64, 64, 64]
    assert next(make_loader(cfg, train=False).batches(0))[0].shape[-1] == 40


def options(root: Path, loader: str) -> list[str]:
    """Overrides for a small network on the pictures in ``root``."""
    return [
        "name=parity",
        "data=imagefolder",
        f"data.root={root}",
        "data.image_size=32",
        "data.workers=0",
        f"data.loader={loader}",
        "backbone.widths=[16,32]",
        "backbone.blocks=[1,1]",
        "optim.batch_size=24",
        "optim.precision=fp32",
    ]


@pytest.mark.parametrize("loader", ["torch", "ffcv"])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(
    compose_train: Callable[..., TrainConfig],
    wnids: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loader: str,
) -> None:
    from mrl.checkpoint import load_checkpoint
    from mrl.distributed import Ranks
    from mrl.train_loop import fit

    tiny = [*options(wnids, loader), "head.granularities=[2,32]", "optim.epochs=1"]
    tiny += ["optim.warmup_epochs=0", "data.train_sizes=[32,64]", "data.ramp_epochs=[0,0]"]
    straight = compose_train(*tiny, f"run_dir={tmp_path}/straight")
    stopped = compose_train(*tiny, f"run_dir={tmp_path}/stopped", "resume=true")
    fit(straight, Ranks(), torch.device("cpu"))
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        with pytest.raises(KeyboardInterrupt):
            fit(stopped, Ranks(), torch.device("cpu"))
    fit(stopped, Ranks(), torch.device("cpu"))
    a, b = (load_checkpoint(cfg.run_dir)["model"] for cfg in (straight, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_model_learns_the_same_from_both(
    compose_train: Callable[..., TrainConfig], data_config: MakeConfig, wnids: Path, tmp_path: Path
) -> None:
    from mrl.checkpoint import load_model
    from mrl.distributed import Ranks
    from mrl.train_loop import fit

    # The test images by the torch loader, for models trained through either.
    judge = both(data_config, wnids, image_size=32)[0]
    splits = load_splits(judge)
    images, labels = next(
        build_loader(
            splits.test,
            cfg=judge,
            pixels=splits.pixels,
            batch_size=60,
            train=False,
            seed=0,
        ).batches(0)
    )
    found: dict[str, list[float]] = {"torch": [], "ffcv": []}
    for name, scores in found.items():
        for seed in range(2):
            cfg = compose_train(
                *options(wnids, name),
                "head.granularities=[32]",
                "optim.epochs=8",
                f"seed={seed}",
                f"run_dir={tmp_path}/{name}{seed}",
            )
            model = load_model(fit(cfg, Ranks(), torch.device("cpu")))
            with torch.inference_mode():
                right = model(images)[32].argmax(1) == labels
            scores.append(100 * float(right.float().mean()))
    mean = {name: sum(scores) / len(scores) for name, scores in found.items()}
    assert min(mean.values()) > 50  # of 4 classes: something was learnt
    # Two models, 60 images: the standard error of a difference is about 6 points.
    assert abs(mean["torch"] - mean["ffcv"]) < 15

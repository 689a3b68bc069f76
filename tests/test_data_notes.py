"""What a run notes of its data, and what happens when they have changed since."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from mrl import config
from mrl.checkpoint import load_checkpoint
from mrl.config import ConfigError
from mrl.data import DataError, Pixels
from mrl.data.class_folders import class_folders
from mrl.distributed import Ranks
from mrl.evaluation import evaluate_run
from mrl.export import export_safetensors, read_source
from mrl.train_loop import fit

CONFIGS = Path(__file__).parent.parent / "configs"
CPU = torch.device("cpu")
VIT = "vit_tiny_patch16_224"
HALF = [0.5, 0.5, 0.5]


def train(cfg):
    fit(cfg, Ranks(), CPU)
    return Path(cfg.run_dir)


def evaluate(run_dir, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        options = [f"run={run_dir}", "device=cpu", "evals=[classify]", *overrides]
        return evaluate_run(run_dir, config.parse(compose("eval", overrides=options)))


@pytest.fixture
def pictures(tmp_path):
    """Red and blue squares, 24 and 8 of each."""
    for split, count in (("train", 24), ("val", 8)):
        for name, colour in (("red", (250, 9, 9)), ("blue", (9, 9, 250))):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20, 20), tuple(c - i % 7 for c in colour)).save(
                    folder / f"{i:02d}.png"
                )
    return tmp_path / "pictures"


@pytest.fixture
def run_of(tiny_run, pictures):
    """A run on these pictures."""

    def made(*overrides):
        folder = ["data=imagefolder", f"data.root={pictures}", "data.image_size=16"]
        folder += ["data.workers=0", "data.holdout=8", "data.num_images=null", "optim.epochs=3"]
        return tiny_run(*folder, *overrides)

    return made


def copied(root):
    shutil.copy(root / "train/red/00.png", root / "train/red/99.png")


def exchanged(root):
    for i in range(24):
        Image.new("RGB", (30, 30)).save(root / f"train/red/{i:02d}.png")


def third_class(root):
    for split in ("train", "val"):
        shutil.copytree(root / split / "red", root / split / "green")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (copied, "40 then, 41 now"),
        (exchanged, "40 then, 40 now"),
        (
            lambda root: [(root / s / "red").rename(root / s / "rot") for s in ("train", "val")],
            "gone: red; new: rot",
        ),
    ],
    ids=["one more", "exchanged", "renamed class"],
)
def test_a_run_whose_data_changed_does_not_go_on_by_itself(run_of, pictures, change, message):
    train(run_of("optim.epochs=1"))
    change(pictures)
    with pytest.raises(ConfigError, match=f"began with other data .*{message}.*force=true"):
        train(run_of("optim.epochs=1", "resume=true"))
    train(run_of("resume=true", "force=true"))


def test_a_run_goes_on_with_a_copy_of_its_data(run_of, pictures, tmp_path):
    train(run_of("optim.epochs=1"))
    pictures.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.png"):
        os.utime(path, (0, 0))
    train(run_of("optim.epochs=1", "resume=true", f"data.root={tmp_path}/moved"))


def test_resuming_matches_classes_by_name_where_folders_sort_otherwise(run_of, monkeypatch):
    straight = load_checkpoint(train(run_of("run_dir=" + str(run_of().run_dir) + "1")))
    cfg = run_of()
    train(replace(cfg, optim=replace(cfg.optim, epochs=1)))
    backwards = lambda root: dict(reversed(class_folders(root).items()))  # noqa: E731
    monkeypatch.setattr("mrl.data.image_folder.class_folders", backwards)
    resumed = load_checkpoint(train(replace(cfg, resume=True, force=True)))
    assert resumed["data"]["classes"] == ["blue", "red"]
    rows = {(r.metric, r.granularity): r.value for r in evaluate(Path(cfg.run_dir))}
    assert rows["top1", 16] > 60
    assert straight["data"] == resumed["data"]


def test_new_pictures_are_said_and_the_held_out_ones_judged_again(run_of, pictures, capsys):
    run_dir = train(run_of())
    noted = load_checkpoint(run_dir)["data"]["holdout"]
    before = evaluate(run_dir, "split=holdout")
    assert "warning" not in capsys.readouterr().out
    for i in range(20):
        shutil.copy(pictures / "val/red/00.png", pictures / f"train/blue/new{i}.png")
    after = evaluate(run_dir, "split=holdout")
    assert [(r.granularity, r.value, r.n) for r in after] == [
        (r.granularity, r.value, r.n) for r in before
    ]
    assert "data have changed: the training images are others: 40 then, 60 now" in (
        capsys.readouterr().out
    )
    (pictures / noted[0]).unlink()
    assert {row.n for row in evaluate(run_dir, "split=holdout")} == {7}
    assert f"1 of 8 held-out images are gone: {noted[0]}" in capsys.readouterr().out


def test_exchanged_pictures_are_encoded_again(run_of, pictures):
    run_dir = train(run_of("optim.epochs=8"))
    before = {row.granularity: row.value for row in evaluate(run_dir)}
    for i in range(8):
        red, blue = (pictures / f"val/{name}/{i:02d}.png" for name in ("red", "blue"))
        content = red.read_bytes()
        red.write_bytes(blue.read_bytes())
        blue.write_bytes(content)
    after = {row.granularity: row.value for row in evaluate(run_dir)}
    assert all(after[m] == pytest.approx(100 - before[m]) for m in before)
    assert before[16] != 50


@pytest.fixture
def without_hub(monkeypatch):
    """timm gives random weights under the name of pretrained ones."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **k: create(name, **k))


def pixels_of(run_dir):
    return Pixels.from_dict(load_checkpoint(run_dir)["data"]["pixels"])


@pytest.mark.usefixtures("without_hub")
def test_pretrained_weights_get_the_pixels_that_they_were_trained_on(run_of, tmp_path, capsys):
    small = ["backbone=timm", "optim.epochs=1", "backbone.widths=null", "backbone.blocks=null"]
    small += [f"backbone.name={VIT}", "head.granularities=[4,192]"]
    first = train(run_of(*small, "backbone.pretrained=true", f"run_dir={tmp_path}/first"))
    expected = Pixels(mean=(0.5,) * 3, std=(0.5,) * 3, crop_ratio=0.9, interpolation="bicubic")
    assert pixels_of(first) == expected == read_source(first).pixels
    assert f"as of timm's {VIT}, trained at 224 px" in capsys.readouterr().out
    assert json.loads((first / "env.json").read_text())["resolved"]["pixels"]["mean"] == HALF

    # From here on the run's own word counts: in evaluation, in exports, and in runs begun from it.
    evaluate(first)
    manifest = json.loads(next((first / "features").rglob("manifest.json")).read_text())
    assert manifest["transform"]["mean"] == HALF and manifest["transform"]["crop_ratio"] == 0.9
    export_safetensors(read_source(first), tmp_path / "first.safetensors")
    assert read_source(tmp_path / "first.safetensors").pixels == expected
    for start in (first, tmp_path / "first.safetensors"):
        second = train(run_of(*small, f"backbone.init={start}", f"run_dir={tmp_path}/of/{start}"))
        assert pixels_of(second) == expected

    given = ["data.mean=[0.4,0.4,0.4]", "data.std=[0.2,0.2,0.2]", f"run_dir={tmp_path}/given"]
    other = train(run_of(*small, "backbone.pretrained=true", *given))
    assert pixels_of(other) == replace(expected, mean=(0.4,) * 3, std=(0.2,) * 3)
    assert "by the config; as of timm's" in capsys.readouterr().out


def test_a_plain_state_dict_gets_the_pixels_of_its_architecture(run_of, tmp_path):
    torch.save(timm.create_model(VIT, num_classes=0).state_dict(), tmp_path / "vit.pth")
    run_dir = train(
        run_of(
            *("backbone=timm", f"backbone.name={VIT}", f"backbone.init={tmp_path}/vit.pth"),
            *("backbone.widths=null", "backbone.blocks=null", "optim.epochs=1"),
            "head.granularities=[4,192]",
        )
    )
    assert pixels_of(run_dir).mean == (0.5,) * 3


def test_random_weights_get_the_pixels_of_the_data_set(run_of, capsys):
    run_dir = train(run_of("optim.epochs=1"))
    assert pixels_of(run_dir).mean == (0.485, 0.456, 0.406)
    assert "pixels:" not in capsys.readouterr().out


def test_a_run_of_an_older_version_has_those_of_its_data_set(tiny_run):
    run_dir = train(tiny_run("data.flip=false"))
    state = load_checkpoint(run_dir)
    for key in ("pixels", "content", "num_images", "holdout"):
        del state["data"][key]
    torch.save(state, run_dir / "checkpoint.pt")
    assert read_source(run_dir).pixels.mean == (0.5,) * 3
    assert evaluate(run_dir)
    train(tiny_run("data.flip=false", "resume=true"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mean=[0.5]", "need each other"),
        ("data.std=[0.5,0.5,0.5]", "need each other"),
        (["data.mean=[0.5]", "data.std=[0.5]"], "of 1 channels, the images have 3"),
        (["data.mean=[0,0,0]", "data.std=[1,0,1]"], "data.std must be positive"),
        (["data.mean=[0,nan,0]", "data.std=[1,1,1]"], "data.mean must be finite"),
        ("data.crop_ratio=1.5", r"must lie in \(0, 1\], got 1.5"),
        ("data.interpolation=cubic", "must be one of nearest, .*got cubic"),
    ],
)
def test_pixels_that_cannot_be_are_refused(run_of, override, message):
    with pytest.raises(DataError, match=message):
        train(run_of(*([override] if isinstance(override, str) else override)))


def test_colours_are_averaged_for_grey_images():
    grey = Pixels(mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3)).for_channels(1)
    assert grey.mean == pytest.approx((0.5,)) and grey.std == pytest.approx((0.2,))

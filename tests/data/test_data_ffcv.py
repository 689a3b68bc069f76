"""FFCV's format and loader, against FFCV's own reader and against the torch loader."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grey_batches import joined, make_loader
from make_betons import write_betons
from PIL import Image

from mrl.config import DataConfig, LoaderName
from mrl.data import DataError, image_folder, load_splits
from mrl.data.beton import read_beton
from mrl.data.crops import central_boxes, draw_crops
from mrl.data.ffcv_writer import WriteSettings, shrink, write_split

MakeConfig = Callable[..., DataConfig]
SCRIPT = Path(__file__).parents[2] / "scripts" / "write_ffcv.py"
HINT = "FFCV is not installed: bash scripts/install_ffcv.sh"

ffcv_reader = pytest.importorskip("ffcv.reader", reason=HINT)


@pytest.fixture
def ffcv_config(data_config: MakeConfig, betons: Path) -> Callable[..., DataConfig]:
    def make(**changes: Any) -> DataConfig:
        values = {"root": str(betons), "image_size": 16, "holdout": 0} | changes
        return data_config("imagefolder", loader=LoaderName["ffcv"], **values)

    return make


def test_ffcvs_own_reader_finds_our_images_and_labels(betons: Path) -> None:
    ours = read_beton(betons / "train.beton")
    theirs = ffcv_reader.Reader(str(ours.path))
    assert theirs.field_names == ["image", "label"]
    assert theirs.metadata["f1"].tolist() == [0] * 5 + [1] * 5
    assert theirs.metadata["f1"].dtype == np.int64
    for name, field in (("height", "height"), ("width", "width"), ("pointer", "data_ptr")):
        assert (theirs.metadata["f0"][field] == ours.samples["image"][name]).all()
    assert 0 < (ours.samples["image"]["mode"] == 0).sum() < 10  # some as JPEG
    assert (theirs.alloc_table["sample_id"] == np.arange(10)).all()
    assert (theirs.alloc_table["ptr"] == ours.samples["image"]["pointer"]).all()


def test_the_file_is_the_same_whatever_wrote_it(betons: Path, tmp_path: Path) -> None:
    arguments = [betons, "--out", tmp_path / "again", "--workers", "2"]
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train.beton: 10 images of 2 classes" in done.stdout
    for name in ("train.beton", "val.beton", "train.json", "val.json"):
        assert (betons / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_large_images_are_shrunk_and_labels_beyond_16_bits_kept(tmp_path: Path) -> None:
    paths = []
    for size in ((90, 30), (20, 41), (700, 7)):
        paths.append(os.fsencode(tmp_path / f"{size[0]}.png"))
        Image.new("RGB", size, (10, 200, 30)).save(os.fsdecode(paths[-1]))
    labels = torch.tensor([3, 70_000, 4_201])
    classes = [f"n{c:08d}" for c in range(70_001)]
    settings = WriteSettings(max_side=40, jpeg_probability=0)
    write_split(
        tmp_path / "x.beton",
        (np.array(paths), labels, classes),
        settings,
        workers=0,
        skip_corrupt=False,
    )
    beton = read_beton(tmp_path / "x.beton")
    assert beton.samples["label"].tolist() == labels.tolist()
    shapes = beton.samples["image"][["width", "height"]].tolist()
    assert shapes == [(40, 13), (19, 40), (40, 1)]
    assert shrink(np.zeros((40, 40, 3), np.uint8), 40).shape == (40, 40, 3)


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("train", [True, False])
def test_pixels_are_those_of_opencvs_area_averages(
    ffcv_config: Callable[..., DataConfig], betons: Path, os_cache: bool, workers: int, train: bool
) -> None:
    cv2 = pytest.importorskip("cv2", reason=HINT)
    write_betons(betons, jpeg_probability=0)
    cfg = ffcv_config(workers=workers, os_cache=os_cache)
    images, _ = joined(make_loader(cfg, train=train, batch_size=3), epoch=2)
    paths = image_folder.scan(betons)[0][0]
    order = torch.arange(10)
    if train:
        order = torch.cat(
            [i for _, i in make_loader(cfg, train=True, batch_size=3).plan.indices(2)]
        )
    for image, index in zip(images, order.numpy(), strict=True):
        picture = np.array(image_folder.decode(bytes(paths[index])))
        height, width = (np.array([side]) for side in picture.shape[:2])
        boxes, mirrored = draw_crops(
            height, width, np.array([index]), seed=0, epoch=2, flip=cfg.flip
        )
        boxes = boxes if train else central_boxes(height, width)
        top, left, high, wide = boxes[0]
        part = picture[top : top + high, left : left + wide]
        expected = cv2.resize(part, (16, 16), interpolation=cv2.INTER_AREA)
        expected = expected[:, ::-1] if train and mirrored[0] else expected
        assert np.abs(image.permute(1, 2, 0).numpy() - expected).max() < 1e-3


def test_batches_may_be_kept_and_left(ffcv_config: Callable[..., DataConfig]) -> None:
    loader = make_loader(ffcv_config(), train=True, batch_size=1)
    kept = [image.clone() for image, _ in loader.batches(0)]
    assert all(torch.equal(a, b) for a, (b, _) in zip(kept, list(loader.batches(0)), strict=True))
    first = next(islice(loader.batches(0), 1))[0]
    assert torch.equal(first, kept[0])
    assert list(loader.batches(0, start=10)) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="batches are in pinned memory")
def test_memory_of_batches_is_used_again_only_when_all_of_them_is_let_go(
    ffcv_config: Callable[..., DataConfig],
) -> None:
    loader = make_loader(ffcv_config(), train=True, batch_size=1)
    places = [batch[0].data_ptr() for batch in loader.batches(0)]
    assert len(set(places)) < 10  # of the 10 batches; the 3 made ahead have places of their own
    kept_rows = [image[0, 1] for image, _ in loader.batches(0)]  # a part keeps its batch
    again = [image[0, 1].clone() for image, _ in loader.batches(0)]
    assert all(torch.equal(a, b) for a, b in zip(kept_rows, again, strict=True))
    assert len({row.untyped_storage().data_ptr() for row in kept_rows}) == 10


@pytest.mark.parametrize("os_cache", [True, False])
def test_quasi_random_order(ffcv_config: Callable[..., DataConfig], os_cache: bool) -> None:
    cfg = ffcv_config(quasi_random=True, os_cache=os_cache, holdout=3)
    loader = make_loader(cfg, train=True, batch_size=2)
    first, labels = joined(loader, epoch=0)
    other = joined(loader, epoch=1)[0]
    assert torch.equal(joined(loader, epoch=0)[0], first)  # whatever was drawn in between
    assert torch.equal(joined(loader, epoch=0, start=1)[0], first[2:])
    assert not torch.equal(first, other)
    assert len(labels) == 6
    rows = torch.cat(list(loader._indices(0, 0)))
    assert len(set(rows.tolist())) == 6 and int(rows.max()) < 7
    assert torch.equal(labels, loader.dataset.labels[rows])
    with pytest.raises(DataError, match="data.quasi_random=true works in one process only"):
        make_loader(cfg, train=True, batch_size=2, world_size=2)


def test_classes_choose_images_of_a_file(ffcv_config: Callable[..., DataConfig]) -> None:
    cfg = ffcv_config()
    listed = Path(cfg.root) / "list.txt"
    listed.write_text("dog\n")
    splits = load_splits(ffcv_config(classes=str(listed)))
    assert (splits.classes, splits.train.labels.tolist()) == (["dog"], [0] * 5)
    dogs = joined(make_loader(ffcv_config(classes=str(listed)), train=False))[0]
    assert torch.equal(dogs, joined(make_loader(cfg, train=False))[0][5:])
    listed.write_text("dog\nfox\n")
    with pytest.raises(DataError, match="data.classes lists fox, which .*train.beton does not"):
        load_splits(ffcv_config(classes=str(listed)))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def rewrite_val(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "cat").rename(root / split / "emu")
    write_split(
        root / "val.beton",
        image_folder.scan(root)[1],
        WriteSettings(),
        workers=0,
        skip_corrupt=False,
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "val.beton").unlink(), "no file .*val.beton.*write_ffcv.py"),
        (lambda root: (root / "train.json").unlink(), "its manifest .*train.json cannot be used"),
        (lambda root: (root / "train.json").write_text("{"), "train.json cannot be used"),
        (lambda root: (root / "train.json").write_text('{"format": 1}'), "of another version"),
        (lambda root: cut(root / "train.beton"), "it has .* bytes and should have"),
        (lambda root: overwrite(root / "train.beton", 0, b"\7"), "is no .beton of version 2"),
        (lambda root: overwrite(root / "train.beton", 2200, b"\7"), "contents are not those"),
        (lambda root: overwrite(root / "train.beton", 9, b"\1"), "contents are not those"),
        (rewrite_val, "hold other classes"),
    ],
    ids=["file", "manifest", "json", "keys", "cut", "header", "records", "number", "classes"],
)
def test_unusable_files_are_refused_at_once(
    ffcv_config: Callable[..., DataConfig],
    betons: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    damage(betons)
    with pytest.raises(DataError, match=message):
        load_splits(ffcv_config())


def test_damaged_pixels_are_named(ffcv_config: Callable[..., DataConfig], betons: Path) -> None:
    write_betons(betons, jpeg_probability=1)
    beton = read_beton(betons / "train.beton")
    overwrite(beton.path, int(beton.samples["image"]["pointer"][7]), bytes(300))
    with pytest.raises(DataError, match="cannot decode image 7 of .*train.beton"):
        list(make_loader(ffcv_config(), train=False).batches(0))


def test_corrupt_pictures_while_writing(betons: Path) -> None:
    before = (betons / "train.beton").read_bytes()
    (betons / "train" / "dog" / "2.jpg").write_bytes(b"no picture")
    done = subprocess.run(
        [sys.executable, SCRIPT, betons, "--workers", "1"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "error: cannot decode the image" in done.stderr and "2.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    assert (betons / "train.beton").read_bytes() == before
    assert not list(betons.glob(".*partial"))
    train = image_folder.scan(betons)[0]
    path = betons / "train.beton"
    manifest = write_split(path, train, WriteSettings(), workers=0, skip_corrupt=True)
    assert manifest["num_images"] == 9 and "2.jpg" in manifest["skipped"][0]
    assert read_beton(path).samples["label"].tolist() == [0] * 5 + [1] * 4


def test_an_interrupt_leaves_nothing_behind(pictures: Path) -> None:
    slow = pictures / "train" / "dog" / "slow.png"
    Image.new("RGB", (9000, 9000)).save(slow)
    for number in range(40):  # half a second each
        os.link(slow, slow.with_name(f"slow{number}.png"))
    command = [sys.executable, SCRIPT, pictures, "--workers", "0"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # Shells let what they start in the background ignore Ctrl-C, and its children, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(pictures.glob(".train.beton*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130 and "was not written" in messages
    assert sorted(p.name for p in pictures.iterdir()) == ["test", "train"]


def test_settings_out_of_range(tmp_path: Path) -> None:
    for changes in ({"max_side": 0}, {"jpeg_probability": 1.5}, {"jpeg_quality": 0}):
        with pytest.raises(DataError, match=f"got {next(iter(changes.values()))}"):
            WriteSettings(**changes)


def test_without_ffcv_the_error_says_how_to_get_it(
    ffcv_config: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = ffcv_config()
    monkeypatch.setitem(sys.modules, "ffcv.reader", None)
    with pytest.raises(DataError, match="bash scripts/install_ffcv.sh, or use data.loader=torch"):
        make_loader(cfg, train=True)


def test_pytorchs_threads_are_left_alone(ffcv_config: Callable[..., DataConfig]) -> None:
    code = (
        "import torch, sys; torch.set_num_threads(3)\n"
        "from mrl.data.ffcv_loader import _import_ffcv; _import_ffcv()\n"
        "sys.exit(torch.get_num_threads() != 3)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

"""The feature cache: used when nothing changed, gone on with when interrupted, and never wrong."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mrl.data import ImageDataset
from mrl.distributed import Ranks
from mrl.evaluation import row_file
from mrl.evaluation.contract import Features
from mrl.evaluation.feature_files import block_size
from mrl.evaluation.features import extract
from mrl.evaluation.manifest import describe
from mrl.heads import NestedHead
from mrl.model import MRLModel

ROOT = Path(__file__).parents[2]
IMAGES = torch.randint(256, (11, 1, 2, 2), dtype=torch.uint8)
DATASET = ImageDataset(images=IMAGES, labels=torch.arange(11) % 3, classes=["a", "b", "c"])


class RowsLoader:
    """Batches of some rows of DATASET; counts the images that were asked for."""

    steps = 0

    def __init__(self, cache: "Fixture", rows: range, batch_size: int) -> None:
        self.cache, self.rows, self.batch_size = cache, rows, batch_size

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for at in range(0, len(self.rows), self.batch_size):
            rows = list(self.rows[at : at + self.batch_size])
            self.cache.before_batch(rows)
            self.cache.encoded += rows
            rows = [row for row in rows if row not in self.cache.corrupt]
            yield IMAGES[rows].float(), DATASET.labels[rows]


class Fixture:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoded: list[int] = []
        self.corrupt: set[int] = set()
        self.before_batch: Callable[[list[int]], None] = lambda rows: None
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.model = MRLModel(backbone, NestedHead(6, 3, [2, 6]))

    def extract(
        self,
        split: str = "test",
        dataset: ImageDataset = DATASET,
        batch_size: int = 2,
        feature_type: str = "float32",
    ) -> Features:
        manifest = describe(
            self.model,
            dataset,
            name="toy",
            split=split,
            transform={"image_size": 2},
            feature_type=feature_type,
        )
        return extract(
            self.model,
            lambda rows, size: RowsLoader(self, rows, size),
            manifest,
            self.folder,
            batch_size=batch_size,
            device=torch.device("cpu"),
            ranks=Ranks(),
            may_skip=bool(self.corrupt),
        )

    def expected(self) -> Tensor:
        with torch.no_grad():
            return self.model.eval().encode(IMAGES.float())

    @property
    def entry(self) -> Path:
        (entry,) = self.folder.iterdir()
        return entry


@pytest.fixture
def cache(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path / "features")


def test_encodes_in_eval_mode_and_once(cache: Fixture) -> None:
    first = cache.extract()
    torch.testing.assert_close(first.z, cache.expected())
    assert torch.equal(first.labels, DATASET.labels)
    second = cache.extract()
    assert cache.encoded == list(range(11))
    assert torch.equal(first.z, second.z)
    assert sorted(p.name for p in cache.entry.iterdir()) == [
        "blocks.npy",
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
    assert len(cache.encoded) == 22
    cache.model.backbone[2].running_mean += 1
    cache.extract()
    assert len(cache.encoded) == 33
    cache.extract(split="holdout")
    assert len(cache.encoded) == 44
    other = ImageDataset(images=255 - IMAGES, labels=DATASET.labels, classes=DATASET.classes)
    cache.extract(dataset=other)
    assert len(cache.encoded) == 55


@pytest.mark.parametrize("corrupt", [set(), {0, 5, 6, 7}], ids=["whole", "some skipped"])
def test_float16_is_the_same_rounded_and_kept_apart(cache: Fixture, corrupt: set[int]) -> None:
    cache.corrupt = corrupt
    whole = cache.extract()
    rounded = cache.extract(feature_type="float16")
    assert rounded.z.dtype == torch.float16
    assert torch.equal(rounded.z, whole.z.half())
    assert torch.equal(rounded.labels, whole.labels)
    again = [cache.extract(), cache.extract(feature_type="float16")]
    assert [found.z.dtype for found in again] == [torch.float32, torch.float16]
    assert len(cache.encoded) == 22


def test_embeddings_that_float16_cannot_hold_are_refused(cache: Fixture) -> None:
    with torch.no_grad():
        cache.model.backbone[2].bias[3] = 1e5
    with pytest.raises(ValueError, match=r"more than float16 can hold \(65504\)"):
        cache.extract(feature_type="float16")
    assert list(cache.folder.iterdir()) == []
    assert cache.extract().z.max() > 65504


@pytest.mark.parametrize("name", ["embeddings.npy", "labels.npy", "blocks.npy", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "removed", "empty"])
def test_damaged_entry_is_made_again(cache: Fixture, name: str, damage: str) -> None:
    first = cache.extract().z.clone()
    file = cache.entry / name
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5] if damage == "truncated" else b"")
    assert torch.equal(cache.extract().z, first)
    assert cache.encoded == [*range(11), *range(11)]
    assert np.load(cache.entry / "embeddings.npy").shape == (11, 6)


@pytest.mark.parametrize("name", ["embeddings.npy", "labels.npy", "blocks.npy"])
def test_a_flipped_bit_is_noticed_and_its_block_alone_encoded_again(
    cache: Fixture, name: str
) -> None:
    first = cache.extract().z.clone()
    file = cache.entry / name
    content = bytearray(file.read_bytes())
    row_bytes = {"embeddings.npy": 24, "labels.npy": 8, "blocks.npy": 32}[name]
    # Of the last row, which is a block of one image; in blocks.npy the checksum of its labels.
    content[-row_bytes if name != "blocks.npy" else -8] ^= 1
    file.write_bytes(content)
    assert torch.equal(cache.extract().z, first)
    assert cache.encoded == [*range(11), 10]
    assert torch.equal(cache.extract().labels, DATASET.labels)
    assert len(cache.encoded) == 12


class KilledError(Exception):
    pass


@pytest.mark.parametrize("batch_size", [2, 1, 8])
def test_an_interrupted_extraction_goes_on_after_its_last_block(
    cache: Fixture, batch_size: int
) -> None:
    def die(rows: list[int]) -> None:
        if 6 in rows and len(cache.encoded) < 11:
            raise KilledError

    cache.before_batch = die
    with pytest.raises(KilledError):
        cache.extract(batch_size=2)
    assert [p.name[:9] for p in cache.folder.iterdir()] == [".partial-"]
    cache.before_batch = lambda rows: None
    found = cache.extract(batch_size=batch_size)  # what was begun decides the blocks
    assert cache.encoded == list(range(11))
    torch.testing.assert_close(found.z, cache.expected())
    assert torch.equal(found.labels, DATASET.labels)
    assert [p.name[0] == "." for p in cache.folder.iterdir()] == [False]


def test_what_was_begun_for_another_model_is_not_gone_on_with(cache: Fixture) -> None:
    def die(rows: list[int]) -> None:
        raise KilledError

    cache.before_batch = die
    with pytest.raises(KilledError):
        cache.extract()
    cache.before_batch = lambda rows: None
    cache.model.backbone[2].running_mean += 1
    torch.testing.assert_close(cache.extract().z, cache.expected())


def test_skipped_images_leave_no_rows_behind(cache: Fixture, capsys) -> None:
    cache.corrupt = {0, 5, 6, 7}  # 6 and 7 are a whole block
    kept = [row for row in range(11) if row not in cache.corrupt]
    found = cache.extract()
    torch.testing.assert_close(found.z, cache.expected()[kept])
    assert torch.equal(found.labels, DATASET.labels[kept])
    assert "4 of 11 images could not be decoded" in capsys.readouterr().out
    assert torch.equal(cache.extract().z, found.z)
    assert len(cache.encoded) == 11
    assert len(list(cache.folder.iterdir())) == 1


def test_a_loader_that_gives_too_few_images_is_an_error(cache: Fixture) -> None:
    cache.before_batch = lambda rows: rows.__delitem__(0)
    with pytest.raises(RuntimeError, match="the loader gave 1 of 2 images"):
        cache.extract()


def test_failure_leaves_no_entry(cache: Fixture) -> None:
    with torch.no_grad():
        cache.model.backbone[1].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite embeddings, first among images 0 to 1"):
        cache.extract()
    assert list(cache.folder.iterdir()) == []


def test_two_at_once_encode_every_image_once(cache: Fixture, monkeypatch) -> None:
    """The second, here another thread with its own file descriptor, waits and then reads."""
    monkeypatch.setattr(row_file, "_POLL_SECONDS", 0.02)
    begun, go_on = threading.Event(), threading.Event()

    def pause(rows: list[int]) -> None:
        begun.set()
        assert go_on.wait(30)

    cache.before_batch = pause
    found: list[Features] = []
    threads = [threading.Thread(target=lambda: found.append(cache.extract())) for _ in range(2)]
    threads[0].start()
    assert begun.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert cache.encoded == list(range(11))
    assert torch.equal(found[0].z, found[1].z)
    assert len(list(cache.folder.iterdir())) == 1  # the lock is gone, too


def test_block_sizes() -> None:
    assert block_size(1_281_167, 256) == 4096
    assert block_size(1_281_167, 500) == 4000
    assert block_size(1_281_167, 5000) == 5000
    assert block_size(10_000, 500) == 500
    assert block_size(11, 2) == 2


# Peak memory of a process that writes and reads 98 MB of embeddings, and encodes next to nothing.
MEMORY = """
import resource, sys
from pathlib import Path
import torch
from mrl.distributed import Ranks
from mrl.evaluation.features import extract
from mrl.search import nested_knn

count, width = 12_000, 2048
class Model(torch.nn.Module):
    def encode(self, images):
        return images.flatten(1)[:, :1].expand(-1, width) + torch.arange(width)
class Loader:
    def __init__(self, rows, size): self.rows, self.size = rows, size
    def batches(self, epoch, start=0):
        for at in range(0, len(self.rows), self.size):
            rows = torch.tensor(self.rows[at:at + self.size])
            yield rows.float().view(-1, 1, 1, 1), rows
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
manifest = {"num_images": count, "width": width, "split": "t", "type": "float32"}
def run(): return extract(Model(), Loader, manifest, Path(sys.argv[1]), batch_size=500,
                          device=torch.device("cpu"), ranks=Ranks())
before = peak()
run()
found = run()
assert peak() - before < 50, peak() - before
assert found.z[11_999, 5] == 11_999 + 5
"""


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "features")]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_room_nothing_is_encoded_and_nothing_stays(cache: Fixture) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))  # bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            cache.extract()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert cache.encoded == []
    assert list(cache.folder.iterdir()) == []

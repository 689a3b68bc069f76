"""Saved prefix indexes: read back, refused, damaged, interrupted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrl.search import index_files, prefix_index
from mrl.search.index_files import bank_hash
from mrl.search.prefix_index import KINDS, PrefixIndex

pytest.importorskip("faiss")
pytestmark = pytest.mark.filterwarnings("ignore:.*FAISS advises")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


BANK, QUERIES = normal(400, 12), normal(9, 12, seed=1)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_read_back(kind: str, metric: str, tmp_path: Path) -> None:
    options = {"IVFPQ": {"nlist": 2, "code_bytes": 4}, "HNSW32": {"ef_search": 77}}.get(kind, {})
    index = PrefixIndex.build(BANK, 4, kind, metric, seed=5, **options)
    index.save(tmp_path / "a" / "index")
    loaded = PrefixIndex.load(tmp_path / "a" / "index", BANK, dim=4, metric=metric)
    for a, b in zip(index.search(QUERIES, 7), loaded.search(QUERIES, 7), strict=True):
        assert torch.equal(a, b)
    for name in ("kind", "dim", "metric", "num_items", "embed_dim", "bank_hash", "options", "seed"):
        assert getattr(loaded, name) == getattr(index, name)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["index"]
    if kind == "HNSW32":
        assert loaded.content.hnsw.efSearch == 77
    manifest = json.loads((tmp_path / "a" / "index" / "manifest.json").read_text())
    assert manifest["format"] == index_files.FORMAT
    assert (manifest["faiss"] is None) == (kind == "exact")
    assert manifest["bank_hash"] == bank_hash(BANK)


@pytest.fixture(params=["exact", "HNSW32"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    PrefixIndex.build(BANK, 4, request.param).save(tmp_path / "index")
    return tmp_path / "index"


def test_of_something_else(saved: Path) -> None:
    other = BANK.clone()
    other[399, 11] += 1e-3  # a column that the index does not even hold
    with pytest.raises(ValueError, match="index is an index of another bank"):
        PrefixIndex.load(saved, other)
    with pytest.raises(ValueError, match="of another bank.*float16"):
        PrefixIndex.load(saved, BANK.half())
    with pytest.raises(ValueError, match="of a bank of items 400, but the search wants 399"):
        PrefixIndex.load(saved, BANK[:399])
    with pytest.raises(ValueError, match="with dim 4, not 8"):
        PrefixIndex.load(saved, dim=8)
    with pytest.raises(ValueError, match="with metric cosine, not l2"):
        PrefixIndex.load(saved, metric="l2")
    assert PrefixIndex.load(saved, BANK.numpy()).dim == 4


@pytest.mark.parametrize("place", [0, 0.5, 0.99])
def test_damaged_content(saved: Path, place: float) -> None:
    (path,) = (path for path in saved.iterdir() if path.name != "manifest.json")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.name} is damaged or missing"):
        PrefixIndex.load(saved)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="damaged or missing"):
        PrefixIndex.load(saved)
    path.unlink()
    with pytest.raises(ValueError, match="damaged or missing"):
        PrefixIndex.load(saved)


def forge(folder: Path, **facts: object) -> None:
    """Make the manifest's hashes fit the folder's other file, and change some of its facts."""
    (path,) = (path for path in folder.iterdir() if path.name != "manifest.json")
    manifest = index_files.read_manifest(folder)
    manifest |= {"file_hash": index_files.file_hash(path), **facts}
    index_files.write_manifest(folder, manifest)


@pytest.mark.parametrize("other", ["Flat", "IVF", "HNSW32"])
@pytest.mark.parametrize("change", ["kind", "width", "items", "metric"])
def test_another_faiss_index_with_a_hash_made_to_fit(
    other: str, change: str, tmp_path: Path
) -> None:
    PrefixIndex.build(BANK, 4, "OPQ" if change == "kind" else other).save(tmp_path / "index")
    bank = BANK[:300] if change == "items" else BANK
    metric = "l2" if change == "metric" else "cosine"
    PrefixIndex.build(bank, 6 if change == "width" else 4, other, metric).save(tmp_path / "other")
    (tmp_path / "other" / "index.faiss").replace(tmp_path / "index" / "index.faiss")
    forge(tmp_path / "index")
    with pytest.raises(ValueError, match="index.faiss is .*: build the index again"):
        PrefixIndex.load(tmp_path / "index")


@pytest.mark.parametrize("content", [b"", b"no index", b"\x93NUMPY\x01\x00", b"IxFI" + bytes(99)])
def test_rubbish_with_a_hash_made_to_fit(saved: Path, content: bytes) -> None:
    (path,) = (path for path in saved.iterdir() if path.name != "manifest.json")
    path.write_bytes(content)
    forge(saved)
    with pytest.raises(ValueError, match=f"{path.name} (is|holds) "):
        PrefixIndex.load(saved)


@pytest.mark.parametrize("dtype", ["float64", "complex64", "object", "U3"])
@pytest.mark.parametrize("shape", [(400, 4), (400,), (4, 400)])
def test_other_arrays_with_a_hash_made_to_fit(
    dtype: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    PrefixIndex.build(BANK, 4).save(tmp_path / "index")
    np.save(tmp_path / "index" / "prefixes.npy", np.zeros(shape, dtype))
    forge(tmp_path / "index")
    with pytest.raises(ValueError, match="prefixes.npy (is damaged|holds)"):
        PrefixIndex.load(tmp_path / "index")


@pytest.mark.parametrize(
    "facts",
    [{"kind": "LSH"}, {"kind": []}, {"dim": "4"}, {"num_items": None}, {"options": 3}],
    ids=str,
)
def test_foreign_facts_with_a_checksum_made_to_fit(saved: Path, facts: dict[str, object]) -> None:
    forge(saved, **facts)
    with pytest.raises(ValueError, match="its manifest describes no index"):
        PrefixIndex.load(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ("[1]", "is damaged"),
        ("\x00\x01", "is damaged"),
        ("{}", "is damaged: it describes no index"),
        ('{"format": 1}', "is damaged: its checksum is wrong"),
        ('{"format": 99}', "has format 99, not 1"),
    ],
)
def test_damaged_manifest(saved: Path, text: str, message: str) -> None:
    (saved / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        PrefixIndex.load(saved)


@pytest.mark.parametrize(
    ("name", "value"),
    [("kind", "Flat"), ("dim", 8), ("metric", "l2"), ("num_items", 399), ("options", {"a": 1})],
)
def test_changed_manifest(saved: Path, name: str, value: object) -> None:
    facts = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**facts, name: value}))
    with pytest.raises(ValueError, match="is damaged"):
        PrefixIndex.load(saved)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no index at .*missing"):
        PrefixIndex.load(tmp_path / "index")


@pytest.mark.parametrize("step", ["write_manifest", "file_hash"])
def test_interrupted_saving_leaves_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    index = PrefixIndex.build(BANK, 4)
    with monkeypatch.context() as patch:
        patch.setattr(prefix_index, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.save(tmp_path / "index")
        assert list(tmp_path.iterdir()) == []
    index.save(tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setattr(prefix_index, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            PrefixIndex.build(BANK, 8).save(tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert PrefixIndex.load(tmp_path / "index", BANK).dim == 4


def test_failed_exchange_keeps_the_old(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def no_new(path: Path, target: Path) -> Path:
        if target == saved and not path.name.endswith(".old"):
            raise OSError("no")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", no_new)
        with pytest.raises(OSError, match="no"):
            PrefixIndex.build(BANK, 8).save(saved)
    assert [path.name for path in saved.parent.iterdir()] == ["index"]
    assert PrefixIndex.load(saved).dim == 4


def test_saving_again_replaces_an_index_and_nothing_else(saved: Path) -> None:
    PrefixIndex.build(BANK, 8).save(saved)
    assert PrefixIndex.load(saved).dim == 8
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", "prefixes.npy"]
    other = saved.parent / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("important")
    with pytest.raises(FileExistsError, match="mine is there and is no saved index"):
        PrefixIndex.build(BANK, 8).save(other)
    assert (other / "thesis.txt").read_text() == "important"


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_bank_hash_sees_every_byte(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    bank = normal(30, 5).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_files, "_CHUNK", data.draw(st.sampled_from([1, 64, 2**20])))
        before = bank_hash(bank)
        assert before == bank_hash(bank.T.contiguous().T)  # however it lies in memory
        flipped = bank.clone()
        place = data.draw(st.integers(0, bank.numel() * bank.element_size() - 1))
        flipped.view(torch.uint8).view(-1)[place] ^= 1
        assert bank_hash(flipped) != before
        assert bank_hash(bank.view(5, 30)) != before


def test_bank_hash_of_a_memory_map(tmp_path: Path) -> None:
    np.save(tmp_path / "bank.npy", BANK.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "bank.npy", mmap_mode="c"))
    assert bank_hash(mapped) == bank_hash(BANK)

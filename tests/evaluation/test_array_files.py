"""Files of embeddings and labels: what is read, and how what cannot be is explained."""

import gzip
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mrl.evaluation.array_files import read_embeddings, read_labels

Z = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
READERS = [read_embeddings, read_labels]


def bad(values: object) -> np.ndarray:
    z = np.ones((5, 4), np.float32)
    z[[2, 4]] = values
    return z


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (bad(np.nan), r"row 2 has NaN or infinite values \(and 1 more"),
        (bad(np.inf), "row 2 has NaN or infinite"),
        (bad(0), "row 2 is all zeros, which has no direction"),
        (np.zeros((3, 4), np.int8), "must hold float16, float32 or float64 numbers, got int8"),
        (np.zeros(3, np.float32), r"\(items, width\), got shape \(3,\)"),
        (np.zeros((0, 4), np.float32), r"got shape \(0, 4\)"),
        (np.array([[1, "a"]], dtype=object), "Python objects"),
    ],
    ids=["nan", "inf", "zero", "int8", "1-d", "empty", "pickle"],
)
def test_embeddings_that_cannot_be_used(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=f"z.npy.*{message}"):
        read_embeddings(tmp_path / "z.npy")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "must be integers or strings, .* has float64"),
        (np.zeros((3, 1), np.int64), r"one label for each item, got shape \(3, 1\)"),
        (np.array([3, -1]), "must not be negative, .* has -1"),
        (np.array(["a", 1], dtype=object), "Python objects"),
    ],
    ids=["float", "2-d", "negative", "pickle"],
)
def test_labels_that_cannot_be_used(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "y.npy")


def test_labels_keep_their_type(tmp_path: Path) -> None:
    for labels in (
        np.array([2**64 - 1, 0], np.uint64),
        np.array([3, 1], np.int8),
        np.array([3, 1], ">i4"),
        np.array([3, 1, 2, 0])[::2],
        np.array(["a ", "longer"]),
    ):
        np.save(tmp_path / "y.npy", labels)
        np.testing.assert_array_equal(read_labels(tmp_path / "y.npy"), labels)


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, bank=Z, queries=Z)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("z.csv", "1,2")


def safetensors(path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"z": Z}, path)


def cut(path: Path) -> None:
    np.save(path, Z)
    path.write_bytes(path.read_bytes()[:150])


NO_ARRAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a Git LFS pointer to the data: fetch them by git lfs pull",
    ),
    "npz": (npz, "an .npz archive of bank, queries: save one of its arrays"),
    "cut zip": (lambda path: path.write_bytes(b"PK\3\4rest"), "a zip archive that is cut short"),
    "zip": (zipped, "a zip archive: unpack it first"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(Z.tobytes())), "compressed by gzip"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Z)), "a Python pickle: save its array"),
    "PyTorch": (lambda path: torch.save(torch.ones(3), path), "a PyTorch file: save its tensor"),
    "safetensors": (safetensors, "a safetensors file: save its array by numpy.save"),
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n rest"), "an HDF5 file"),
    "HTML": (lambda path: path.write_text("\n<!DOCTYPE html><p>404"), "a web page"),
    "CSV": (lambda path: path.write_text("é,b\n1,2"), r"text \('é,b'\)"),
    "empty": (lambda path: path.touch(), "empty: save or copy it again"),
    "noise": (lambda path: path.write_bytes(b"\xff\0\1abc"), r"of no known kind .* ff 00 01"),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_a_file_that_is_not_what_its_name_says(kind, suffix, read, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    save, what = NO_ARRAYS[kind]
    save(tmp_path / f"z{suffix}")
    with pytest.raises(ValueError, match=rf"z{suffix} cannot be read: it is {what}") as refused:
        read(tmp_path / f"z{suffix}")
    assert "allow_pickle" not in str(refused.value) and "\n" not in str(refused.value)


def test_names_exchanged(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"embedding": Z.tolist()}), tmp_path / "z.parquet")
    (tmp_path / "z.parquet").rename(tmp_path / "a.npy")
    np.save(tmp_path / "z.npy", Z)
    (tmp_path / "z.npy").rename(tmp_path / "b.parquet")
    for name, what in (("a.npy", "a .parquet file"), ("b.parquet", "a .npy file")):
        for read in READERS:
            with pytest.raises(ValueError, match=f"{name} cannot be read: it is {what}: give its"):
                read(tmp_path / name)


@pytest.mark.parametrize("read", READERS)
def test_what_is_no_readable_file(read, tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "z.csv").touch()
    torch.save(torch.ones(3), tmp_path / "z.pt")
    cut(tmp_path / "cut.npy")
    (tmp_path / "head.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:40])
    np.save(tmp_path / "scalar.npy", np.float32(3))
    np.save(tmp_path / "fields.npy", np.zeros(3, [("a", "f4"), ("b", "i4")]))
    (tmp_path / "long.npy").write_bytes(
        b"\x93NUMPY\2\0" + (20_000).to_bytes(4, "little") + b"{}".ljust(20_000)
    )
    np.save(tmp_path / "damaged.npy", Z)
    whole = (tmp_path / "damaged.npy").read_bytes()
    (tmp_path / "damaged.npy").write_bytes(whole.replace(b"}", b" ", 1))
    for name, message in (
        ("folder.npy", "folder.npy is a folder: give a .npy"),
        ("pipe.npy", "pipe.npy is a pipe or a device"),
        ("z.csv", r"z.csv is of no known type: give a .npy or a .parquet file \(it is empty"),
        ("z.pt", r"z.pt is of no known type: .* \(it is a PyTorch file: save its tensor"),
        ("cut.npy", "cut.npy cannot be read: it is cut short"),
        ("head.npy", "head.npy cannot be read: it is cut short"),
        ("long.npy", "long.npy cannot be read: its header is damaged"),
        ("damaged.npy", "damaged.npy cannot be read: its header is damaged"),
        ("scalar.npy", r"scalar.npy must hold .*, got shape \(\)"),
        ("fields.npy", "fields.npy"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="none.npy is not there"):
        read(tmp_path / "none.npy")


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """``parquet(embedding=ARROW_ARRAY, label=...)`` is the path of such a file."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    def written(**columns: object) -> Path:
        write_table(pyarrow.table(columns), tmp_path / "x.parquet", row_group_size=2)
        return tmp_path / "x.parquet"

    return written


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs pyarrow \(pip install pyarrow\)"):
        read_embeddings(tmp_path / "x.parquet")


@pytest.mark.parametrize("kind", ["list_", "large_list", "fixed"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_lists_of_any_kind_in_parquet(kind: str, dtype: str, parquet) -> None:
    import pyarrow as pa

    numbers = getattr(pa, dtype)()
    kinds = {"list_": pa.list_(numbers), "fixed": pa.list_(numbers, 4)}
    kinds["large_list"] = pa.large_list(numbers)
    z, labels = read_embeddings(parquet(embedding=pa.array(list(Z.astype(dtype)), kinds[kind])))
    np.testing.assert_array_equal(z.numpy(), Z.astype(dtype), strict=True)
    assert labels is None


def test_labels_of_any_kind_in_parquet(parquet) -> None:
    import pyarrow as pa

    large = [2**60 + 1, 2**60, 2**60 + 1]
    words = ["a\0", "a", "007"]
    for column, wanted in (
        (pa.array(large, pa.int64()), large),
        (pa.array([2**64 - 1, 1, 2], pa.uint64()), [2**64 - 1, 1, 2]),
        (pa.array(large).dictionary_encode(), large),
        (pa.array(words), words),
        (pa.array(words, pa.large_string()), words),
        (pa.array(words).dictionary_encode(), words),
    ):
        path = parquet(embedding=Z.tolist(), label=column)
        assert read_labels(path).tolist() == wanted
        labels = read_embeddings(path)[1]
        assert labels is not None and labels.tolist() == wanted


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, None, 2, None], r"row 1 has no label, it is null \(nor have 1 more\): fill it in"),
        (["a", "b", None, "c"], "row 2 has no label, it is null: fill"),
        ([None] * 4, "row 0 has no label, it is null"),
        ([1.0, None, 2.0, 3.0], "row 1 has no label"),
        ([1.0, 2.0, 2.0, 3.0], "must be integers or strings, .* has double"),
        ([True, False, True, True], "must be integers or strings, .* has bool"),
        ([b"a", b"b", b"a", b"b"], "must be integers or strings, .* has binary"),
        ([["a"], ["b"], ["a"], ["b"]], r"must be integers or strings, .* has list"),
        ([1, -1, 2, 3], "must not be negative, .* has -1"),
        (np.array(["2024-01-01", "NaT"] * 2, "datetime64[ns]"), "row 1 has no label"),
        (np.array(["2024-01-01"] * 4, "datetime64[ns]"), "has timestamp"),
    ],
    ids=str,
)
def test_labels_of_parquet_that_cannot_be_used(column, message, parquet) -> None:
    import pyarrow as pa

    path = parquet(embedding=[[1.0]] * 4, label=pa.array(column, from_pandas=True))
    with pytest.raises(ValueError, match=message):
        read_labels(path)
    with pytest.raises(ValueError, match=message):
        read_embeddings(path)
    assert len(read_embeddings(path, with_labels=False)[0]) == 4  # labels=FILE is given


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0], None, [2.0]], "row 1 has no embedding, it is null"),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, None]], "row 2 has no number 1 in its embedding"),
        ([[1.0, 2.0], [3.0, 4.0], [5.0]], "row 0 has 2 numbers, row 2 has 1"),
        ([1.0, 2.0, 3.0], "must hold lists of one and the same length, it has double"),
        (["[1, 2]", "[1, 2]"], "must hold lists of .*, it has string"),
        ([[1, 2], [3, 4]], "must hold float16, float32 or float64 numbers, got int64"),
        ([["a"], ["b"]], "must hold float16, float32 or float64 numbers, got object"),
        ([[], []], r"got shape \(2, 0\)"),
        ([[1.0, float("nan")], [3.0, 4.0]], "row 0 has NaN"),
    ],
    ids=str,
)
def test_embeddings_of_parquet_that_cannot_be_used(column, message, parquet) -> None:
    with pytest.raises(ValueError, match=message):
        read_embeddings(parquet(embedding=column))


def test_columns_that_are_missing(parquet) -> None:
    with pytest.raises(ValueError, match="needs a column 'label', it has embedding, text"):
        read_labels(parquet(embedding=[[1.0]], text=["a"]))
    with pytest.raises(ValueError, match="needs a column 'embedding', it has label"):
        read_embeddings(parquet(label=[1]))
    path = parquet(label=list(range(1000)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="x.parquet cannot be read: "):
        read_labels(path)


@pytest.mark.parametrize("read", READERS)
def test_a_file_that_went_through_a_transfer_of_text_is_refused(read, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.arange(300))
    content = (tmp_path / "z.npy").read_bytes()
    assert b"\n" in content[128:]  # 10 is one of the numbers
    for changed in (content.replace(b"\n", b"\r\n"), content + b"1234"):
        (tmp_path / "z.npy").write_bytes(changed)
        with pytest.raises(ValueError, match="z.npy"):
            read(tmp_path / "z.npy")

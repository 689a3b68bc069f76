"""Embeddings of another model: files, errors, and the same numbers as one's own would give."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from mrl import config
from mrl.evaluation import evaluate_embeddings
from mrl.evaluation.array_files import read_embeddings, read_labels
from mrl.evaluation.embeddings import load_features, widths_of
from mrl.evaluation.rows import Row
from mrl.report.rows import read_rows

ROOT = Path(__file__).parents[2]


def compose_eval(*overrides: str) -> config.EvalConfig:
    config.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return config.parse(compose("eval", overrides=[*overrides, "device=cpu"]))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """60 items of 16 numbers in 3 classes, and 9 queries."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 16))
    made = {}
    for prefix, count in (("", 60), ("query_", 9)):
        labels = generator.integers(3, size=count)
        z = centres[labels] + generator.normal(size=(count, 16))
        for name, array in (("embeddings", z.astype(np.float32)), ("labels", labels)):
            made[prefix + name] = tmp_path / f"{prefix}{name}.npy"
            np.save(made[prefix + name], array)
    made["out"] = tmp_path / "a" / "rows"
    return made


def overrides_of(files: dict[str, Path], *keys: str) -> list[str]:
    return [f"{key}={files[key]}" for key in (*keys, "out")]


def values(rows: list[Row]) -> dict[tuple[str, str, int], float]:
    return {
        (r.evaluator, r.metric, r.granularity): r.value
        for r in rows
        if not r.metric.startswith("ms/")
    }


EVALS = ["evals=[knn,retrieval]", "evals.retrieval.ks=[5]", "evals.retrieval.shortlist=20"]
ALL = ["embeddings", "labels", "query_embeddings", "query_labels"]


def test_rows_of_bank_and_queries(files: dict[str, Path]) -> None:
    cfg = compose_eval(*overrides_of(files, *ALL), *EVALS, "name=glove", "dataset=words")
    rows = evaluate_embeddings(cfg)
    first = rows[0]
    assert (first.run, first.experiment, first.method) == ("a/rows", "glove", "glove")
    assert (first.dataset, first.n, first.commit) == ("words", 9, "unknown")
    assert {r.evaluator for r in rows} == {"knn", "retrieval", "truncation"}
    assert {r.granularity for r in rows} == {8, 16}
    assert len(read_rows([files["out"]])) == len(rows)
    written = (files["out"] / "rows.jsonl").read_text().splitlines()
    assert [Row(**json.loads(line)) for line in written] == rows


def test_the_default_evaluators_leave_out_what_they_cannot(files, capsys) -> None:
    rows = evaluate_embeddings(compose_eval(*overrides_of(files, "embeddings")))
    assert {(r.evaluator, r.metric) for r in rows} == {
        ("truncation", "bytes/item"),
        ("truncation", "neighbours@10"),
    }
    said = capsys.readouterr().out
    assert "classify is left out: it needs a model" in said
    assert "knn is left out: it needs labels=FILE" in said
    rows = evaluate_embeddings(compose_eval(*overrides_of(files, "embeddings", "labels")))
    assert {r.evaluator for r in rows} == {"knn", "interpolation", "truncation"}
    assert {r.n for r in rows} == {60}  # each item, sought among the others
    with pytest.raises(ValueError, match="labels=FILE is missing: knn, retrieval cannot"):
        evaluate_embeddings(compose_eval(*overrides_of(files, "embeddings"), *EVALS))


def test_a_seeded_part_of_the_bank_as_queries(files: dict[str, Path]) -> None:
    def queries(*more: str) -> torch.Tensor:
        cfg = compose_eval(*overrides_of(files, "embeddings", "labels"), "num_queries=7", *more)
        bank, queries = load_features(cfg)
        assert queries.ids is not None and len(queries) == 7
        assert torch.equal(bank.z[queries.ids], queries.z)
        assert torch.equal(bank.labels[queries.ids], queries.labels)
        return queries.ids

    assert torch.equal(queries(), queries())
    assert not torch.equal(queries(), queries("seed=1"))
    with pytest.raises(ValueError, match="num_queries=61 is more than the 60 items"):
        queries("num_queries=61")


def save(path: Path, array: np.ndarray, kind: str) -> None:
    if kind == "float64":
        array = array.astype(np.float64)
    if kind == "big-endian":
        array = array.astype(">f4")
    if kind == "by columns":
        array = np.asfortranarray(array)
    np.save(path, array)


@pytest.mark.parametrize("kind", ["float64", "big-endian", "by columns"])
def test_how_the_file_lies_on_the_disk_makes_no_difference(files, kind: str) -> None:
    expected = values(evaluate_embeddings(compose_eval(*overrides_of(files, *ALL), *EVALS)))
    for key in ("embeddings", "query_embeddings"):
        array = np.load(files[key])
        save(files[key], array, kind)
        np.testing.assert_array_equal(read_embeddings(files[key])[0].numpy(), array)
    found = values(evaluate_embeddings(compose_eval(*overrides_of(files, *ALL), *EVALS)))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if "bytes" not in key[1]:
            assert found[key] == pytest.approx(value)


def test_labels_may_be_words(files: dict[str, Path]) -> None:
    expected = values(evaluate_embeddings(compose_eval(*overrides_of(files, *ALL), *EVALS)))
    for key in ("labels", "query_labels"):
        np.save(files[key], np.array(["cat", "dog", "axolotl"])[np.load(files[key])])
    assert values(evaluate_embeddings(compose_eval(*overrides_of(files, *ALL), *EVALS))) == expected
    np.save(files["labels"], np.zeros(60, np.int64))
    with pytest.raises(ValueError, match="both be integers or both strings"):
        evaluate_embeddings(compose_eval(*overrides_of(files, *ALL)))


def test_parquet(files: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    expected = values(evaluate_embeddings(compose_eval(*overrides_of(files, *ALL), *EVALS)))
    for prefix in ("", "query_"):
        z, labels = (np.load(files[prefix + key]) for key in ("embeddings", "labels"))
        frame = pd.DataFrame({"text": "x", "embedding": list(z), "label": labels})
        files[f"{prefix}embeddings"] = tmp_path / f"{prefix}items.parquet"
        frame.to_parquet(files[f"{prefix}embeddings"])
    cfg = compose_eval(*overrides_of(files, "embeddings", "query_embeddings"), *EVALS)
    assert values(evaluate_embeddings(cfg)) == expected
    ragged = tmp_path / "ragged.parquet"
    pd.DataFrame({"embedding": [[1.0], [1.0, 2.0]]}).to_parquet(ragged)
    with pytest.raises(ValueError, match="lists of one and the same length"):
        read_embeddings(ragged)
    with pytest.raises(ValueError, match="needs a column 'label', it has embedding"):
        read_labels(ragged)
    ragged.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="ragged.parquet cannot be read"):
        read_embeddings(ragged)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"needs pyarrow \(pip install pyarrow\)"):
        read_embeddings(tmp_path / "x.parquet")


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


def test_files_that_do_not_fit(files: dict[str, Path], tmp_path: Path) -> None:
    def load(*keys: str) -> None:
        load_features(compose_eval(*overrides_of(files, *keys)))

    with pytest.raises(ValueError, match="labels are given and query_labels=FILE are missing"):
        load("embeddings", "labels", "query_embeddings")
    with pytest.raises(ValueError, match="query_labels are given and labels=FILE are missing"):
        load("embeddings", "query_embeddings", "query_labels")
    z = np.load(files["query_embeddings"])
    for other, message in ((z[:, :8], "query_embeddings 8 of"), (z.astype(np.float16), "float16")):
        np.save(files["query_embeddings"], other)
        with pytest.raises(ValueError, match=message):
            load(*ALL)
    np.save(files["labels"], np.zeros(59, np.int64))
    with pytest.raises(ValueError, match=r"60 embeddings .* and 59 labels"):
        load("embeddings", "labels")
    (tmp_path / "cut.npy").write_bytes(files["embeddings"].read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cut.npy cannot be read"):
        read_embeddings(tmp_path / "cut.npy")
    (tmp_path / "z.csv").touch()
    with pytest.raises(ValueError, match=r"z.csv is of no known type: give a .npy or a .parquet"):
        read_embeddings(tmp_path / "z.csv")
    with pytest.raises(FileNotFoundError, match="none.npy is not there"):
        read_embeddings(tmp_path / "none.npy")


def test_widths() -> None:
    assert widths_of(768, None) == [12, 24, 48, 96, 192, 384, 768]
    assert widths_of(4, None) == [4]  # below the smallest
    assert widths_of(100, [3, 70]) == [3, 70]
    with pytest.raises(ValueError, match=r"halving the width 77 .* 'widths=\[...,77\]'"):
        widths_of(77, None)
    with pytest.raises(ValueError, match="granularity 101 exceeds the embedding width 100"):
        widths_of(100, [101])


def test_command_line(files: dict[str, Path], tmp_path: Path) -> None:
    def evaluate(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "eval.py"), *overrides]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    done = evaluate(*overrides_of(files, *ALL), *EVALS)
    assert done.returncode == 0, done.stderr
    assert "% of 9 items of embeddings test" in done.stdout
    assert "8 > 16" in done.stdout and f"rows: {files['out']}/rows.jsonl" in done.stdout
    refused = evaluate(*overrides_of(files, "embeddings"), "evals=[knn]")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: labels=FILE is missing: knn")

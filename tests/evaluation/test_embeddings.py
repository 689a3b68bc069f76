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
from mrl.evaluation.array_files import read_embeddings
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
    assert {r.evaluator for r in rows} == {"knn", "retrieval"}
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


def items(count: int, tmp_path: Path) -> list[str]:
    """Overrides for random embeddings of two classes."""
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(count, 16)))
    np.save(tmp_path / "y.npy", np.arange(count) % 2)
    return [f"embeddings={tmp_path}/z.npy", f"labels={tmp_path}/y.npy", f"out={tmp_path}/out"]


@pytest.mark.parametrize(
    ("words", "metrics"),
    [
        (["evals=[knn]"], {"knn top1_k1", "knn top1_k5"}),
        (["evals=[truncation]"], {"truncation neighbours@7", "truncation top1_k1"}),
        (["evals=[knn]", "evals.truncation.k=5"], {"knn top1_k5", "truncation neighbours@5"}),
        (["evals.knn.k=[3]"], {"knn top1_k3", "truncation neighbours@7"}),
        (["evals.truncation.k=2"], {"knn top1_k5", "truncation neighbours@2"}),
        (["evals.truncation=null"], {"knn top1_k5"}),
    ],
)
def test_what_is_asked_for_is_done_and_no_more(words, metrics, tmp_path, capsys) -> None:
    rows = evaluate_embeddings(compose_eval(*items(8, tmp_path), *words))
    found = {f"{r.evaluator} {r.metric}" for r in rows}
    assert metrics <= found
    asked = {metric.split()[0] for metric in metrics}
    default = set() if words[0].startswith("evals=") else {"interpolation"}
    assert {r.evaluator for r in rows} == asked | default
    cut = "truncation looks at 7 neighbours, not 10: there are no more"
    assert (cut in capsys.readouterr().out) == ("truncation neighbours@7" in metrics)


def test_an_evaluator_with_nothing_to_say_says_so(tmp_path, capsys) -> None:
    evaluate_embeddings(compose_eval(*items(8, tmp_path), "evals=[interpolation]", "widths=[8]"))
    assert "interpolation has nothing to say at these widths: [8]" in capsys.readouterr().out


def test_a_bank_of_three_items_is_judged_by_default(tmp_path, capsys) -> None:
    rows = evaluate_embeddings(compose_eval(*items(3, tmp_path)))
    metrics = {f"{r.evaluator} {r.metric}" for r in rows}
    assert {"knn top1_k1", "truncation neighbours@2"} <= metrics
    assert "knn top1_k5" not in metrics
    assert "knn looks at 2 neighbours, not 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evals=[classify,knn]"], "embeddings=FILE comes without one: classify cannot do without"),
        (["evals=[classify,knn,interpolation]"], "embeddings=FILE comes .*: classify cannot"),
        (["evals=[]"], "no evaluator asked for"),
        (["evals=[knn]", "evals.retrieval.ks=[3]"], r"no value for evals.retrieval.shortlist: .* "),
        (
            ["evals.truncation.k=8"],
            r"evals.truncation.k must lie in 1..7 \(the neighbours\), got 8",
        ),
        (["evals.knn.k=[8]"], "evals.knn.k=8 is more than the 7 neighbours there are"),
        (["evals.knn.k=[]"], "evals.knn.k must be different positive numbers"),
    ],
)
def test_what_is_named_is_never_left_out(words, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(compose_eval(*items(8, tmp_path), *words))


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


def test_files_that_do_not_fit(files: dict[str, Path]) -> None:
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

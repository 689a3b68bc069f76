"""The same items as bank and queries, or twice in the bank."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from mrl import config
from mrl.evaluation import evaluate_embeddings, twins
from mrl.evaluation.contract import Features
from mrl.evaluation.embeddings import load_features
from mrl.evaluation.twins import num_in_bank, num_twins, same_items

CONFIGS = Path(__file__).parents[2] / "configs"
RANDOM = np.random.default_rng(0)
Z, Y = RANDOM.normal(size=(80, 16)).astype(np.float32), RANDOM.integers(10, size=80)


def compose_eval(tmp_path: Path, **paths: Path | str) -> config.EvalConfig:
    words = [f"{key}={path}" for key, path in paths.items()]
    config.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        words += [f"out={tmp_path}/out", "device=cpu", "evals=[knn]"]
        return config.parse(compose("eval", overrides=words))


@pytest.fixture
def bank(tmp_path: Path) -> dict[str, Path]:
    np.save(tmp_path / "z.npy", Z)
    np.save(tmp_path / "y.npy", Y)
    return {"embeddings": tmp_path / "z.npy", "labels": tmp_path / "y.npy"}


def load(bank: dict[str, Path], z: np.ndarray, y: np.ndarray) -> tuple[Features, Features]:
    folder = bank["labels"].parent
    np.save(folder / "zq.npy", z)
    np.save(folder / "yq.npy", y)
    queries = {"query_embeddings": folder / "zq.npy", "query_labels": folder / "yq.npy"}
    return load_features(compose_eval(folder, **bank, **queries))


@pytest.mark.parametrize("how", ["the file", "a link", "a copy", "of another length"])
def test_the_bank_as_its_own_queries_is_searched_without_themselves(
    how: str, bank: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = evaluate_embeddings(compose_eval(tmp_path, **bank))
    queries = tmp_path / "q.npy"
    if how == "the file":
        queries = bank["embeddings"]
    elif how == "a link":
        queries.symlink_to(bank["embeddings"])
    elif how == "a copy":
        shutil.copy(bank["embeddings"], queries)
    else:
        np.save(queries, Z / np.linalg.norm(Z, axis=1, keepdims=True))
    both = {**bank, "query_embeddings": queries, "query_labels": bank["labels"]}
    capsys.readouterr()
    rows = evaluate_embeddings(compose_eval(tmp_path, **both))
    assert [(r.metric, r.value, r.n) for r in rows] == [(r.metric, r.value, r.n) for r in expected]
    assert "note: query_embeddings are the bank itself" in capsys.readouterr().out
    assert max(row.value for row in rows) < 50


@pytest.mark.parametrize(
    ("rows", "count"), [([3, 7], 2), (range(40), 40), (range(79, -1, -1), 80)], ids=str
)
def test_queries_that_are_in_the_bank_are_counted(rows, count, bank, capsys) -> None:
    rows = list(rows)
    others = RANDOM.normal(size=(5, 16)).astype(np.float32)
    _, queries = load(bank, np.concatenate([Z[rows], others]), np.append(Y[rows], [0] * 5))
    assert queries.ids is None
    said = capsys.readouterr().out
    assert f"note: {count} of {count + 5} queries are items of the bank, too" in said


def test_nothing_is_said_of_other_items(bank, capsys) -> None:
    load(bank, Z[:, ::-1], Y)
    load(bank, Z[1:] + 1e-3, Y[1:])
    load_features(compose_eval(bank["labels"].parent, **bank))
    assert capsys.readouterr().out == ""


def test_a_bank_that_holds_items_twice_says_so(bank, capsys) -> None:
    np.save(bank["embeddings"], np.concatenate([Z[:78], Z[:1], Z[:1]]))
    load_features(compose_eval(bank["labels"].parent, **bank))
    assert "note: 3 of 80 items are in the bank twice" in capsys.readouterr().out


def test_queries_of_other_classes_only_are_refused(bank) -> None:
    with pytest.raises(ValueError, match="labels and query_labels have no class in common"):
        load(bank, Z[:3] + 1, np.array([10, 11, 12]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 4, 16])
def test_against_comparing_all_rows(dtype, width, monkeypatch) -> None:
    monkeypatch.setattr(twins, "_CHUNK_BYTES", 100)
    generator = torch.Generator().manual_seed(0)
    bank = torch.randint(1, 4, (60, width), generator=generator).to(dtype)
    queries = torch.randint(1, 4, (30, width), generator=generator).to(dtype)
    assert num_in_bank(bank, queries) == sum(bool((bank == q).all(1).any()) for q in queries)
    assert num_twins(bank) == sum(int((bank == row).all(1).sum()) > 1 for row in bank)
    other = bank.clone()
    other[-1] = torch.arange(width) + 7
    assert same_items(bank, bank.clone()) and same_items(bank, 3 * bank)
    assert not same_items(bank, -bank) and not same_items(bank, bank[:-1])
    assert width == 1 or not same_items(bank, other)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1.0, 1e30, 1e150])
def test_the_same_items_are_known_at_any_scale(scale: float) -> None:
    z = torch.from_numpy(Z).double()
    assert same_items(z, z * scale) and same_items(z * scale, z)
    assert not same_items(z * scale, (z + 1e-3) * scale)
    assert not same_items(z * scale, z.flip(0) * scale)

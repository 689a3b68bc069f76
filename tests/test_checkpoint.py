import pickle
import random

import pytest
import torch

from mrl.checkpoint import (
    CheckpointError,
    config_of,
    load_checkpoint,
    load_model,
    save_checkpoint,
)
from mrl.config import ConfigError, to_dict
from mrl.model import build_model


@pytest.fixture
def saved(tiny_run, tmp_path):
    """(path, model) of a checkpoint."""
    cfg = tiny_run()
    model = build_model(cfg.backbone, cfg.head, num_classes=10, in_channels=3, image_size=16)
    path = tmp_path / "checkpoint.pt"
    facts = {"classes": [str(c) for c in range(10)], "in_channels": 3}
    state = {"config": to_dict(cfg), "data": facts, "step": 3, "rng": []}
    save_checkpoint(path, {**state, "model": model.state_dict(), "optimizer": {}})
    return path, model


def test_the_model_comes_back_from_the_file_alone(saved, tmp_path):
    path, model = saved
    images = torch.randn(2, 3, 16, 16)
    loaded = load_model(path)
    assert not loaded.training
    for m, logits in model.eval()(images).items():
        assert torch.equal(loaded(images)[m], logits)
    assert load_model(tmp_path).granularities == [2, 4, 16]  # a run directory


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path}/checkpoint.pt"):
        load_model(tmp_path)


@pytest.mark.parametrize("kept", [0, 10, 1000, -1])
def test_a_truncated_file_is_named(saved, kept):
    path, _ = saved
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=str(path)):
        load_model(path)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the bomb went off')",))


@pytest.mark.parametrize("writer", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_a_pickle_that_runs_code_is_refused(tmp_path, writer):
    path = tmp_path / "bomb.pt"
    writer({"model": Bomb()}, path)
    with pytest.raises(CheckpointError, match="refused"):
        load_model(path)


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(3)])
def test_a_foreign_file_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        load_model(tmp_path / "other.pt")


def test_a_changed_bit_is_noticed(saved):
    path, _ = saved
    content = path.read_bytes()
    noticed, lucky = 0, random.Random(0)
    for _ in range(60):
        place, changed = lucky.randrange(len(content)), bytearray(content)
        changed[place] ^= 1 << lucky.randrange(8)
        path.write_bytes(changed)
        try:
            state = load_checkpoint(path)
        except CheckpointError:
            noticed += 1
        else:  # it was in the padding between the tensors
            path.write_bytes(content)
            whole = load_checkpoint(path)
            assert all(torch.equal(state["model"][n], t) for n, t in whole["model"].items())
            assert state["config"] == whole["config"]
    assert noticed > 30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("config", value) for value in (None, [1], "x", {"optim": 3}, {"nonsense": 1})),
        *(("data", value) for value in (None, {}, {"classes": 3, "in_channels": 3})),
        *(("data", {"classes": ["a"], "in_channels": value}) for value in ("3", None, 0)),
        ("data", {"classes": [], "in_channels": 3}),
        *(("step", value) for value in (-1, "3", 2.5, True)),
        *(("model", value) for value in (None, {}, [], {"head.weight": torch.zeros(1)})),
        *(("rng", value) for value in (None, 3, [3])),
        *(("best", value) for value in (3, {}, {"step": 1})),
        ("optimizer", None),
    ],
)
def test_fields_of_another_kind_are_refused(saved, field, value):
    path, _ = saved
    torch.save(torch.load(path, weights_only=True) | {field: value}, path)
    with pytest.raises((CheckpointError, ConfigError)):
        load_model(path)


@pytest.mark.parametrize("text", ["${oc.env:HOME}", r"\${a}", "a${b", "??", "C:\\d\\", "${name}"])
def test_what_a_checkpoint_says_is_taken_literally(saved, text):
    path, _ = saved
    state = load_checkpoint(path)
    state["config"]["name"] = text
    save_checkpoint(path, state)
    assert config_of(load_checkpoint(path)).name == text


def test_weights_of_another_architecture_are_refused(saved):
    path, _ = saved
    state = load_checkpoint(path)
    state["config"]["backbone"]["widths"] = [8, 24]
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="do not fit the checkpoint's config"):
        load_model(path)

import pickle

import pytest
import torch

from mrl.checkpoint import CheckpointError, load_checkpoint, load_model, save_checkpoint
from mrl.config import to_dict
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


def test_weights_of_another_architecture_are_refused(saved):
    path, _ = saved
    state = load_checkpoint(path)
    state["config"]["backbone"]["widths"] = [8, 24]
    save_checkpoint(path, state)
    with pytest.raises(CheckpointError, match="do not fit the checkpoint's config"):
        load_model(path)

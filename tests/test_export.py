"""Exports in the authors' layout and as safetensors hold the same model."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from random_models import RESNET18, SMALL, images_for, source

import mrl
from mrl.backbones import build_backbone
from mrl.checkpoint import CheckpointError
from mrl.distributed import Ranks
from mrl.export import export_released, export_safetensors, read_source
from mrl.heads import build_head
from mrl.initial_weights import load_backbone_weights
from mrl.model import MRLModel
from mrl.train_loop import fit

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "scripts/export.py"))


def assert_same(source, loaded):
    images = images_for(source)
    assert not loaded.training
    expected, found = source.model(images), loaded(images)
    assert list(found) == list(expected)
    assert all(torch.equal(found[m], logits) for m, logits in expected.items())


@pytest.fixture
def run_dir(tiny_run):
    return fit(tiny_run("head=tied", "optim.epochs=1"), Ranks(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "granularities", "options"),
    [
        ("nested", [8, 100, 512], {}),
        ("nested", [64], {"blur_pool": True}),
        ("nested", [512], {}),
        ("tied", [8, 16, 32, 64, 128, 256, 512], {"blur_pool": True}),
    ],
)
def test_the_authors_layout_reads_back(tmp_path, kind, granularities, options):
    exported = source(kind, granularities, RESNET18 | options, bias=kind == "tied")
    out = tmp_path / "r18_mrl0_e0.pt"
    export_released(exported, out)
    assert_same(exported, mrl.load_model(out))


def test_a_convnext_is_exported_with_the_names_of_torchvision(tmp_path):
    import torchvision

    backbone = RESNET18 | {"name": "convnext_tiny.in12k_ft_in1k"}
    exported = source("nested", [48, 768], backbone)
    export_released(exported, tmp_path / "convnext.pt")
    assert_same(exported, mrl.load_model(tmp_path / "convnext.pt"))
    weights = torch.load(tmp_path / "convnext.pt", weights_only=True)
    network = torchvision.models.convnext_tiny()
    network.classifier[2] = torch.nn.Identity()
    network.load_state_dict({n: w for n, w in weights.items() if "nesting" not in n})


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        ({"backbone": SMALL}, "weights.pt", "not this resnet_small"),
        ({"backbone": RESNET18 | {"small_stem": True}}, "weights.pt", "not this resnet18"),
        ({"backbone": RESNET18 | {"in_channels": 1}}, "weights.pt", "not this resnet18"),
        ({"backbone": RESNET18, "granularities": [512]}, "weights.pt", "put mrl0_e0 into the name"),
        ({"backbone": RESNET18, "granularities": [512]}, "mrl1_e1.pt", "put mrl0_e0 into the name"),
    ],
)
def test_what_the_authors_layout_cannot_hold_is_refused(tmp_path, options, name, message):
    with pytest.raises(ValueError, match=message):
        export_released(source(**options), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["nested", "tied"])
@pytest.mark.parametrize("bias", [True, False])
def test_safetensors_and_description_read_back(tmp_path, kind, bias):
    exported = source(kind, bias=bias)
    export_safetensors(exported, tmp_path / "model.safetensors")
    assert_same(exported, mrl.load_model(tmp_path / "model.safetensors"))
    again = read_source(tmp_path / "model.safetensors")
    assert again.description() == exported.description()


def test_a_run_goes_through_every_form(tmp_path, run_dir):
    trained = read_source(run_dir)
    assert trained.classes == [str(c) for c in trained.classes]
    assert trained.pixels.mean == (0.5,) * 3
    assert_same(trained, mrl.load_model(run_dir))
    SCRIPT["main"]([str(run_dir), "--to", "safetensors", "--out", f"{tmp_path}/new/x.safetensors"])
    assert_same(trained, mrl.load_model(tmp_path / "new/x.safetensors"))


def test_a_released_file_can_be_exported(tmp_path, capsys):
    export_released(source("nested", [8, 512], RESNET18), tmp_path / "r18.pt")
    out = tmp_path / "r18.safetensors"
    SCRIPT["main"]([str(tmp_path / "r18.pt"), "--to", "safetensors", "--out", str(out)])
    assert f'mrl.load_model("{out}") reads it' in capsys.readouterr().out
    assert_same(read_source(tmp_path / "r18.pt"), mrl.load_model(out))
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["backbone"]["image_size"] == 224
    assert facts["mean"] == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda weights, facts: facts.unlink(), "needs its description .*model.json"),
        (lambda weights, facts: facts.write_text("{"), "model.json describes no model"),
        (lambda weights, facts: facts.write_text("[]"), "model.json describes no model"),
        (lambda weights, facts: facts.write_text('{"format": 9}'), "its format is 9, not 1"),
        (
            lambda weights, facts: facts.write_text(facts.read_text().replace("resnet_", "r_")),
            "backbone.blocks belong to resnet_small only",
        ),
        (
            lambda weights, facts: facts.write_text(
                facts.read_text().replace('"bias": true', '"bias": false')
            ),
            "does not fit its description model.json: head.classifiers.16.bias is unexpected",
        ),
        (lambda weights, facts: weights.unlink(), "model.safetensors is not there or damaged"),
        (lambda weights, facts: weights.write_bytes(b"x" * 40), "safetensors is not there or dam"),
    ],
    ids=["no-json", "cut", "list", "format", "backbone", "bias", "no-weights", "damaged"],
)
def test_a_broken_export_is_explained(tmp_path, break_it, message):
    out = tmp_path / "model.safetensors"
    export_safetensors(source(), out)
    break_it(out, out.with_suffix(".json"))
    with pytest.raises(CheckpointError, match=message):
        mrl.load_model(out)


def test_a_fresh_model_takes_the_encoder_of_a_run_or_an_export(tmp_path, run_dir):
    trained = read_source(run_dir)
    export_safetensors(trained, tmp_path / "model.safetensors")
    for path in (run_dir, tmp_path / "model.safetensors"):
        encoder, embed_dim = build_backbone(**trained.backbone)
        fresh = MRLModel(encoder, build_head("nested", embed_dim, 5, [3])).eval()
        load_backbone_weights(fresh, path)
        images = images_for(trained)
        assert torch.equal(fresh.encode(images), trained.model.encode(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "released", "--out", "x.bin"], "--out must end in .pt, got x.bin"),
        (["--to", "released", "--out", "x.pt", "--widths", "8"], "belong to --to onnx"),
        (["--to", "released", "--out", "{here}/there.pt"], "exists: choose another name"),
    ],
)
def test_wrong_command_lines_are_refused(tmp_path, capsys, arguments, message):
    (tmp_path / "there.pt").touch()
    with pytest.raises(SystemExit):
        SCRIPT["main"](["run", *(a.format(here=tmp_path) for a in arguments)])
    assert message in capsys.readouterr().err


def test_a_kind_is_refused_where_the_file_tells_it(run_dir):
    with pytest.raises(ValueError, match="leave out kind=MRL-E"):
        read_source(run_dir, kind="MRL-E")

"""The authors' checkpoints: recognised, loaded strictly, equal to the networks they came from."""

import io

import pytest
import torch
import torchvision
from original_networks import (
    NUM_CLASSES,
    Fixed,
    Numbered,
    TiedNumbered,
    TiedSingle,
    original,
    save,
)
from torch import nn

from mrl import load_model
from mrl.backbones import build_backbone
from mrl.checkpoint import CheckpointError
from mrl.heads import method_name
from mrl.released import load_released

LOG_512 = [8, 16, 32, 64, 128, 256, 512]


@torch.no_grad()
def assert_same_logits(network, model):
    images = torch.randn(2, 3, 64, 64)
    expected, found = network(images), model(images)
    assert list(found) == list(expected)
    for m, logits in expected.items():
        assert logits.std() > 1e-3  # not all alike
        torch.testing.assert_close(found[m], logits, rtol=1e-4, atol=1e-4 * logits.abs().max())


@pytest.mark.parametrize("layer", [Numbered, TiedNumbered, TiedSingle, Fixed])
@pytest.mark.parametrize(("blur", "prefix"), [(False, ""), (True, "module.")], ids=str)
def test_logits_equal_the_original_networks(tmp_path, layer, blur, prefix):
    kind = {Numbered: "MRL", Fixed: "FF"}.get(layer, "MRL-E")
    network = original("resnet18", layer(LOG_512), blur=blur)
    path = save(network, tmp_path / "r18_mrl0_e1_ff512.pt", prefix=prefix)
    model = load_model(path)
    assert method_name(model.head) == kind
    assert model.head.num_classes == NUM_CLASSES
    assert not model.training
    assert_same_logits(network, model)


@pytest.mark.parametrize(
    ("architecture", "widths", "blur"),
    [
        ("resnet34", [8, 512], False),
        ("resnet50", [8, 16, 2048], True),
        ("resnet101", [16, 2048], True),
        ("convnext_tiny", [48, 96, 192, 384, 768], False),
        ("convnext_tiny", [48, 768], True),
    ],
)
def test_every_released_architecture_is_recognised(tmp_path, architecture, widths, blur):
    network = original(architecture, Numbered(widths), blur=blur)
    assert_same_logits(network, load_model(save(network, tmp_path / "weights.pt")))


def test_a_convnext_of_timm_is_recognised(tmp_path):
    backbone, _ = build_backbone("convnext_tiny", image_size=32)
    layer = TiedNumbered([48, 96, 192, 384, 768])
    weights = {**backbone.state_dict()}
    weights |= {f"head.fc.{name}": w for name, w in layer.state_dict().items()}
    torch.save(weights, tmp_path / "convnext.pt")
    network = nn.Sequential(backbone, layer).eval()
    assert_same_logits(network, load_model(tmp_path / "convnext.pt"))


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("r18_mrl0_e0_ff512.pt", None, "FF"),
        ("r18_mrl0_e1_ff512.pt", None, "MRL-E"),
        ("r18_mrl1_e1_ff512.pt", None, "MRL-E"),
        ("weights.pt", "FF", "FF"),
        ("weights.pt", "MRL-E", "MRL-E"),
        ("r18_mrl0_e0_ff512.pt", "MRL-E", "MRL-E"),
    ],
)
def test_name_or_caller_say_what_a_single_classifier_is(tmp_path, name, kind, found):
    network = original("resnet18", Fixed([512]))
    model = load_released(save(network, tmp_path / name), kind=kind)
    assert method_name(model.head) == found
    assert model.granularities == (LOG_512 if found == "MRL-E" else [512])


@pytest.mark.parametrize("name", ["weights.pt", "r18_mrl1_e0_ff512.pt"])
def test_a_single_classifier_that_nothing_explains_is_refused(tmp_path, name):
    path = save(original("resnet18", Fixed([512])), tmp_path / name)
    with pytest.raises(CheckpointError, match='kind="MRL-E"'):
        load_model(path)


def test_other_granularities_of_mrl_e_can_be_given(tmp_path):
    network = original("resnet18", TiedSingle([12, 100, 512]))
    path = save(network, tmp_path / "weights.pt")
    assert_same_logits(network, load_released(path, kind="MRL-E", granularities=[12, 100, 512]))


@pytest.mark.parametrize(
    ("widths", "options", "message"),
    [
        ([8, 512], {"kind": "MRL-E"}, r"widths \[8, 512\] are MRL, not MRL-E"),
        ([64], {"kind": "MRL-E"}, r"widths \[64\] are FF, not MRL-E"),
        ([8, 512], {"kind": "mrl"}, "kind must be one of MRL, MRL-E, FF, got 'mrl'"),
        ([8, 512], {"granularities": [8, 16]}, r"holds MRL at \[8, 512\], not at \[8, 16\]"),
        ([64, 8], {}, r"strictly increasing, got \[64, 8\]"),
        ([8, 1024], {}, "1024 exceeds the embedding width 512"),
    ],
)
def test_a_contradiction_is_explained(tmp_path, widths, options, message):
    path = save(original("resnet18", Numbered(widths)), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=message):
        load_released(path, **options)


def without(name):
    return lambda weights: weights.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layer2.0.bn1.bias"), "resnet18: layer2.0.bn1.bias is missing"),
        (without("fc.nesting_classifier_0.bias"), "fc.nesting_classifier_0.bias is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra is unexpected"),
        (
            lambda w: w.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"conv1.weight has shape \(64, 1, 7, 7\) instead of \(64, 3, 7, 7\)",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("layer3.1")],
            r"a ResNet of \(2, 2, 1, 2\) blocks",
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if name.startswith("fc.")],
            "no linear classifier",
        ),
        (
            lambda w: w.update({"classifier.2.weight": torch.zeros(7, 512)}),
            "classifiers at classifier.2 and fc where one layer was expected",
        ),
        (
            lambda w: (
                [w.pop(name) for name in list(w) if name.startswith("layer4.1.")]
                and w.update({f"layer4.1.{i}": torch.zeros(1) for i in range(9)})
            ),
            r"layer4.1.conv1.weight is missing; .*; and 16 more",
        ),
    ],
    ids=["norm", "bias", "extra", "shape", "depth", "headless", "two-heads", "many"],
)
def test_a_file_that_does_not_fit_is_refused_with_the_first_differences(tmp_path, change, message):
    weights = original("resnet18", Numbered([8, 512])).state_dict()
    change(weights)
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "weights.pt")


def test_the_weights_of_another_network_are_refused(tmp_path):
    path = save(torchvision.models.squeezenet1_1(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="not one of the authors' models"):
        load_model(path)


def test_the_prefix_of_ddp_is_taken_off_only_where_it_stands_everywhere(tmp_path):
    weights = original("resnet18", Numbered([8, 512])).state_dict()
    weights["module.bn1.bias"] = weights.pop("bn1.bias")
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="module.bn1.bias is unexpected"):
        load_model(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [b"", b"no pickle", None])
def test_a_released_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "weights.pt"
    if content is None:
        buffer = io.BytesIO()
        torch.save(original("resnet18", Fixed([8])).state_dict(), buffer)
        content = buffer.getvalue()[:-1000]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        load_released(path)


def test_a_file_of_the_time_before_zip_is_read(tmp_path):
    network = original("resnet18", Fixed([8]))
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same_logits(network, load_model(path))

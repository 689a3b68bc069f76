"""An encoder's first weights out of files of many makes."""

from argparse import Namespace

import pytest
import safetensors.torch
import timm
import torch
from original_networks import Fixed, Numbered, original, save
from torch import nn

from mrl.backbones import build_backbone
from mrl.checkpoint import CheckpointError
from mrl.heads import NestedHead
from mrl.initial_weights import load_backbone_weights
from mrl.model import MRLModel


def fresh(*, name="resnet18", image_size=64, **options):
    backbone, embed_dim = build_backbone(name, image_size=image_size, **options)
    return MRLModel(backbone, NestedHead(embed_dim, 3, [4, embed_dim])).eval()


def assert_encodes_like(network, model, image_size=64):
    """``network`` is timm's with its classifier, on which its features end."""
    images = torch.randn(2, 3, image_size, image_size)
    with torch.no_grad():
        expected = network.eval().forward_head(network.forward_features(images), pre_logits=True)
        torch.testing.assert_close(model.encode(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [Numbered, Fixed])
def test_a_fresh_model_takes_the_encoder_of_a_released_file(tmp_path, layer):
    network = original("resnet18", layer([512]), blur=True)
    model = fresh(blur_pool=True)
    head = {name: w.clone() for name, w in model.head.state_dict().items()}
    load_backbone_weights(model, save(network, tmp_path / "weights.pt", prefix="module."))
    network.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.encode(images), network(images), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(head[name], w) for name, w in model.head.state_dict().items())


def test_an_encoder_that_does_not_fit_leaves_the_model_as_it_was(tmp_path):
    path = save(original("resnet18", Fixed([512])), tmp_path / "weights.pt")
    model = fresh(blur_pool=True)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"blur_pool=false fits it\): .*blur_filter is miss"):
        load_backbone_weights(model, path)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    with pytest.raises(CheckpointError, match="another than the one to start: layer1.2"):
        load_backbone_weights(fresh(name="resnet34"), path)


def prefixed(prefix):
    return lambda weights: {f"{prefix}{name}": w for name, w in weights.items()}


def without_counters(weights):
    return {n: w for n, w in weights.items() if not n.endswith("num_batches_tracked")}


def beside_a_head(weights):
    return prefixed("model.backbone.")(weights) | {"model.head.weight": torch.zeros(7, 512)}


WRAPPINGS = {
    "plain": dict,
    "no counters": without_counters,
    "ddp": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "lightning": lambda w: {"epoch": 3, "state_dict": prefixed("model.")(w), "loops": {"n": [1]}},
    "beside a head": beside_a_head,
    "model": lambda w: {"model": w, "optimizer": {}, "args": Namespace(lr=0.1)},
    "averaged": lambda w: {
        "state_dict": {name: torch.zeros_like(t) for name, t in w.items()},
        "state_dict_ema": w,
    },
}


@pytest.mark.parametrize("wrapped", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_a_plain_state_dict_starts_a_run_however_it_is_wrapped(tmp_path, wrapped):
    network = timm.create_model("resnet18", num_classes=7)
    torch.save(wrapped(network.state_dict()), tmp_path / "weights.pth")
    model = fresh()
    load_backbone_weights(model, tmp_path / "weights.pth")
    assert_encodes_like(network, model)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "vit_tiny_patch16_224", "mobilenetv3_small_050", "test_efficientnet"]
)
def test_the_classifier_is_known_in_any_architecture(tmp_path, name):
    network = timm.create_model(name, num_classes=7)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    model = fresh(name=name, image_size=224)
    load_backbone_weights(model, tmp_path / "weights.safetensors")
    assert_encodes_like(network, model, 224)


def test_position_embeddings_of_another_image_size_are_resampled(tmp_path):
    network = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    model = fresh(name="vit_tiny_patch16_224", image_size=64)
    load_backbone_weights(model, tmp_path / "weights.pth")
    assert model.backbone.pos_embed.shape == (1, 17, 192)
    resized = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    resized.load_state_dict(network.state_dict())
    resized.set_input_size((64, 64))
    assert_encodes_like(resized, model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", {"weights": {"conv1.weight": torch.zeros(1)}}, "weights are no tensors"),
        ("a.pth", {"state_dict": {"conv1.weight": 3}}, "in 'state_dict': conv1.weight are no"),
        ("a.pth", {}, "holds no named tensors"),
        ("a.pth", [torch.zeros(1)], "no named tensors but a list"),
        ("a.pth", {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "bn1.weight is missing; .* .. more"),
        ("a.pth", b"conv1.weight 0.1 0.2\n", "refused|damaged"),
        ("a.pth", b"(1", "refused|damaged"),
        ("a.pth", b"\x80\x02a.", "refused|damaged"),
        ("a.safetensors", b"version https://git-lfs", "not there or damaged"),
        ("missing.pth", None, "there is no checkpoint at"),
    ],
)
def test_what_holds_no_such_encoder_is_refused_by_name(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_backbone_weights(fresh(), path)
    assert str(path) in str(error.value)


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"state_dict": {"conv1.weight": Evil()}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="refused"):
        load_backbone_weights(fresh(), tmp_path / "a.pth")

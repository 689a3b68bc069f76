import pytest
import torch
import torch.nn.functional as F

from mrl.backbones import BlurPool, build_backbone


@pytest.mark.parametrize(
    ("name", "options", "embed_dim"),
    [
        ("resnet_small", {"widths": [8, 24], "blocks": [1, 2], "in_channels": 1}, 24),
        ("resnet18", {"small_stem": True}, 512),
        ("vit_tiny_patch16_224", {"drop_path": 0.1}, 192),
        ("convnext_atto", {"in_channels": 1}, 320),
        ("mobilenetv3_small_050", {}, 1024),
        ("vit_small_patch16_224", {"image_size": 48}, 384),
        ("convnext_tiny", {"image_size": 64}, 768),
        ("resnet34", {}, 512),
        ("resnet101", {"blur_pool": True}, 2048),
    ],
)
def test_the_embedding_width_is_found(name, options, embed_dim):
    options = {"image_size": 32, "in_channels": 3, **options}
    backbone, found = build_backbone(name, **options)
    assert found == embed_dim
    size = options["image_size"]
    z = backbone.eval()(torch.randn(2, options["in_channels"], size, size))
    assert z.shape == (2, embed_dim)


def test_the_small_stem_keeps_small_images_large():
    plain, _ = build_backbone("resnet18", image_size=32)
    small, _ = build_backbone("resnet18", image_size=32, small_stem=True)
    images = torch.randn(1, 3, 32, 32)
    assert plain.eval().forward_features(images).shape[-1] == 1
    assert small.eval().forward_features(images).shape[-1] == 4


def test_finding_the_width_leaves_the_norms_untouched():
    backbone, _ = build_backbone("resnet_small", image_size=28, widths=[8], blocks=[1])
    norm = next(m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert backbone.training
    assert norm.num_batches_tracked == 0


def test_blur_pool_is_a_binomial_filter_before_the_strided_convolution():
    conv = torch.nn.Conv2d(16, 3, 3, stride=2, padding=1)
    x = torch.randn(2, 16, 9, 8)
    padded = F.pad(x, (1, 1, 1, 1))
    blurred = torch.zeros_like(x)
    for i, a in enumerate([1, 2, 1]):
        for j, b in enumerate([1, 2, 1]):
            blurred += a * b / 16 * padded[:, :, i : i + 9, j : j + 8]
    torch.testing.assert_close(BlurPool(conv)(x), conv(blurred))


@pytest.mark.parametrize(
    ("name", "options", "places"),
    [
        (
            "resnet50",
            {},
            [f"layer{i}.0.{place}" for i in (2, 3, 4) for place in ("conv2", "downsample.0")],
        ),
        (
            "resnet18",
            {"small_stem": True},
            [f"layer{i}.0.{place}" for i in (2, 3, 4) for place in ("conv1", "downsample.0")],
        ),
        ("convnext_tiny", {}, [f"stages.{i}.downsample.1" for i in (1, 2, 3)]),
    ],
)
def test_blur_pool_stands_before_every_strided_convolution_of_features(name, options, places):
    backbone, _ = build_backbone(name, image_size=32, blur_pool=True, **options)
    assert [path for path, m in backbone.named_modules() if isinstance(m, BlurPool)] == places


@torch.no_grad()
def test_blur_pool_makes_features_less_sensitive_to_shifts():
    torch.manual_seed(0)
    plain, _ = build_backbone("resnet18", image_size=64)
    blurred, _ = build_backbone("resnet18", image_size=64, blur_pool=True)
    weights = {key.replace(".conv.weight", ".weight"): w for key, w in blurred.state_dict().items()}
    plain.load_state_dict({key: weights[key] for key in plain.state_dict()})
    images = torch.randn(4, 3, 64, 64)
    change = {}
    for name, backbone in (("plain", plain), ("blurred", blurred)):
        z, shifted = backbone.eval()(images), backbone(images.roll(1, dims=3))
        change[name] = float((z - shifted).norm() / z.norm())
    assert change["blurred"] < change["plain"]


def test_features_that_are_not_pooled_are_refused(monkeypatch):
    # All of timm's families pool; this is for one that will not.
    monkeypatch.setattr("timm.create_model", lambda *_, **__: torch.nn.Conv2d(3, 4, 3))
    with pytest.raises(ValueError, match=r"no pooled \(N, D\) features but \(1, 4, 30, 30\)"):
        build_backbone("resnet18", image_size=32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "close names: resnet18"),
        ("resnet_small", {}, "needs backbone.widths"),
        ("resnet_small", {"widths": [8], "blocks": [1, 1]}, "equally many"),
        ("resnet_small", {"widths": [8, 8], "blocks": [1, 0]}, "positive"),
        ("resnet_small", {"widths": [4, 8], "blocks": [1, 1]}, "must lie in 8.."),
        ("resnet_small", {"widths": [8], "blocks": [1], "small_stem": True}, "no small stem"),
        ("resnet18", {"widths": [8]}, "belong to resnet_small"),
        ("vit_tiny_patch16_224", {"small_stem": True}, "has another stem"),
        ("vit_tiny_patch16_224", {"image_size": 8}, "vit_tiny_patch16_224"),
        ("vit_tiny_patch16_224", {"blur_pool": True}, "no strided convolution of at least 16"),
        ("resnet18.of_nobody", {"pretrained": True}, "pretrained weights of resnet18.of_nobody"),
        ("vgg11", {"drop_path": 0.1}, "vgg11 lacks an option that was set"),
    ],
)
def test_what_cannot_be_built_is_explained(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **{"image_size": 32, **options})

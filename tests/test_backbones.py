import pytest
import torch

from mrl.backbones import build_backbone


@pytest.mark.parametrize(
    ("name", "options", "embed_dim"),
    [
        ("resnet_small", {"widths": [8, 24], "blocks": [1, 2], "in_channels": 1}, 24),
        ("resnet18", {"small_stem": True}, 512),
        ("vit_tiny_patch16_224", {"drop_path": 0.1}, 192),
        ("convnext_atto", {"in_channels": 1}, 320),
        ("mobilenetv3_small_050", {}, 1024),
    ],
)
def test_the_embedding_width_is_found(name, options, embed_dim):
    options = {"image_size": 32, "in_channels": 3, **options}
    backbone, found = build_backbone(name, **options)
    assert found == embed_dim
    z = backbone.eval()(torch.randn(2, options["in_channels"], 32, 32))
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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, "close names: resnet18"),
        ("resnet_small", {}, "needs backbone.widths"),
        ("resnet_small", {"widths": [8], "blocks": [1, 1]}, "equally many"),
        ("resnet_small", {"widths": [8, 8], "blocks": [1, 0]}, "positive"),
        ("resnet_small", {"widths": [4, 8], "blocks": [1, 1]}, "at least 8"),
        ("resnet_small", {"widths": [8], "blocks": [1], "small_stem": True}, "no small stem"),
        ("resnet18", {"widths": [8]}, "belong to resnet_small"),
        ("vit_tiny_patch16_224", {"small_stem": True}, "has another stem"),
        ("vit_tiny_patch16_224", {"image_size": 8}, "vit_tiny_patch16_224"),
    ],
)
def test_what_cannot_be_built_is_explained(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **{"image_size": 32, **options})

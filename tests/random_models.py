"""Models with random weights and running statistics, as a trained model would have."""

import torch

from mrl.backbones import build_backbone
from mrl.data import Pixels
from mrl.export import Source
from mrl.heads import build_head
from mrl.model import MRLModel

SMALL = {"name": "resnet_small", "image_size": 16, "in_channels": 1}
SMALL |= {"widths": [16, 16], "blocks": [1, 1], "blur_pool": True}
RESNET18 = {"name": "resnet18", "image_size": 64, "in_channels": 3}


def source(kind="nested", granularities=(2, 5, 16), backbone=SMALL, bias=True):
    """A model of random weights and running statistics."""
    torch.manual_seed(0)
    encoder, embed_dim = build_backbone(**backbone)
    model = MRLModel(encoder, build_head(kind, embed_dim, 3, granularities, bias))
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    channels = backbone["in_channels"]
    pixels = Pixels(mean=(0.5,) * channels, std=(0.25,) * channels, interpolation="bicubic")
    return Source(model=model.eval(), backbone=backbone, pixels=pixels, classes=list("abc"))


def images_for(source):
    size = source.backbone["image_size"]
    return torch.randn(3, source.backbone["in_channels"], size, size)

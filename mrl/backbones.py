"""Encoders: any timm model by name, a small ResNet for small images, and BlurPool for either.

Shapes: N examples, D embedding width.  A backbone maps images (N, channels, H, W) to pooled
features (N, D); this file is the only one that knows how a model spells its last layers.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL_RESNET = "resnet_small"
# PyTorch on CPUs with AVX2 (seen in 2.14 and 2.15) writes out of bounds in the backward pass of a
# strided 1x1 convolution from fewer than 8 channels in channels_last; the process may crash.
MIN_WIDTH = 8
MOST_WIDTH, MOST_BLOCKS = 2**14, 2**10  # more is a slip, which would fill the memory
STEM_WIDTH = 16  # channels of resnet_small at full resolution
# A stem that reads pixels keeps its detail: only convolutions of features are blurred.
BLUR_MIN_CHANNELS = 16


class _Block(nn.Module):
    """Basic residual block: two 3x3 convolutions (He et al. 2016)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class SmallResNet(nn.Module):
    """A ResNet for images of 28 to 64 pixels that a laptop's CPU trains in minutes.

    The stem looks at all pixels with few channels (3x3 convolution), then halves the resolution
    (4x4, stride 2): at 28 px most of the arithmetic would otherwise go into the first stage.  Each
    stage after the first halves it again.

    Args:
        in_channels: of the images.
        widths: channels of each stage; the last is the embedding width.
        blocks: residual blocks in each stage.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        if not widths or len(widths) != len(blocks) or min(blocks) < 1:
            raise ValueError(
                "backbone.widths and backbone.blocks must be equally many, and blocks positive, "
                f"got {list(widths)} and {list(blocks)}"
            )
        if not MIN_WIDTH <= min(widths) <= max(widths) <= MOST_WIDTH or max(blocks) > MOST_BLOCKS:
            raise ValueError(
                f"backbone.widths must lie in {MIN_WIDTH}..{MOST_WIDTH} and backbone.blocks in "
                f"1..{MOST_BLOCKS}, got {list(widths)} and {list(blocks)}"
            )
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, STEM_WIDTH, 3, 1, 1, bias=False),
            nn.BatchNorm2d(STEM_WIDTH),
            nn.ReLU(inplace=True),
            nn.Conv2d(STEM_WIDTH, widths[0], 4, 2, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        channels = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for i in range(count):
                layers.append(_Block(channels, width, 2 if stage > 0 and i == 0 else 1))
                channels = width
        self.layers = nn.Sequential(*layers)
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Block):
                # Each block starts as its shortcut (Goyal et al. 2017), which steadies large rates.
                nn.init.zeros_(module.norm2.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean(dim=(2, 3))


class BlurPool(nn.Module):
    """A fixed low-pass filter in front of a strided convolution (Zhang 2019, "Making convolutional
    networks shift-invariant again"), as in the FFCV recipe that the paper trains ResNet-50 with.

    The filter is [1, 2, 1] x [1, 2, 1] / 16 on each channel, at stride 1 with zeros around the map.
    Its buffer and the convolution are named as in the authors' checkpoints.
    """

    blur_filter: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur_filter", torch.outer(row, row).repeat(conv.in_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.conv2d(x, self.blur_filter, padding=1, groups=len(self.blur_filter)))


def build_backbone(
    name: str,
    *,
    in_channels: int = 3,
    image_size: int = 224,
    widths: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    small_stem: bool = False,
    pretrained: bool = False,
    drop_path: float = 0.0,
    blur_pool: bool = False,
) -> tuple[nn.Module, int]:
    """The encoder called ``name`` and the width of its embeddings.

    Args:
        name: "resnet_small", or any model of timm.
        small_stem: keep small images large: a ResNet's 7x7 stride-2 convolution and max pooling
            become one 3x3 convolution of stride 1 (timm models with ``conv1`` and ``maxpool``).
        widths, blocks: of "resnet_small".
        blur_pool: a :class:`BlurPool` for each strided convolution of at least 16 input channels.

    Returns:
        (module, D): the module maps (N, in_channels, image_size, image_size) to (N, D).

    Raises:
        ValueError: for an unknown name (the closest ones are offered), an option that the model
            does not have, pretrained weights that cannot be had, or features that are no pooled
            vectors.
    """
    if name == SMALL_RESNET:
        if small_stem or pretrained or drop_path:
            raise ValueError(f"{name} has no small stem, pretrained weights or drop_path to set")
        if widths is None or blocks is None:
            raise ValueError(f"{name} needs backbone.widths and backbone.blocks")
        backbone: nn.Module = SmallResNet(in_channels, widths, blocks)
    else:
        if widths is not None or blocks is not None:
            raise ValueError(f"backbone.widths and backbone.blocks belong to {SMALL_RESNET} only")
        backbone = _timm_model(name, in_channels, image_size, pretrained, drop_path)
        if small_stem:
            _shrink_stem(backbone, name, in_channels)
    if blur_pool:
        _blur_strided_convolutions(backbone, name)
    return backbone, _embed_dim(backbone, name, in_channels, image_size)


def _timm_model(
    name: str, in_channels: int, image_size: int, pretrained: bool, drop_path: float
) -> nn.Module:
    import timm  # takes a second: not needed by those who only want the head or the loss

    known = timm.list_models()
    if name.split(".")[0] not in known:
        close = difflib.get_close_matches(name, [SMALL_RESNET, *known], n=5, cutoff=0.5)
        raise ValueError(
            f"no backbone is called {name!r}; close names: {', '.join(close) or 'none'} "
            f"(any of timm's {len(known)} models, or {SMALL_RESNET})"
        )
    options: dict[str, Any] = {"in_chans": in_channels, "num_classes": 0}
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        try:  # transformers fix their position embeddings to an image size; others have no such key
            return timm.create_model(name, pretrained, img_size=image_size, **options)
        except TypeError:
            return timm.create_model(name, pretrained, **options)
    except TypeError as error:
        raise ValueError(f"{name} lacks an option that was set: {error}") from error
    except (RuntimeError, OSError) as error:
        if not pretrained:
            raise
        raise ValueError(f"the pretrained weights of {name} cannot be had: {error}") from error


def _blur_strided_convolutions(backbone: nn.Module, name: str) -> None:
    strided = [
        (path, module)
        for path, module in backbone.named_modules()
        if isinstance(module, nn.Conv2d)
        and max(module.stride) > 1
        and module.in_channels >= BLUR_MIN_CHANNELS
    ]
    if not strided:
        raise ValueError(
            f"backbone.blur_pool: {name} has no strided convolution of at least "
            f"{BLUR_MIN_CHANNELS} input channels to blur: set it to false"
        )
    for path, conv in strided:
        backbone.set_submodule(path, BlurPool(conv))


def _shrink_stem(backbone: nn.Module, name: str, in_channels: int) -> None:
    conv, pool = getattr(backbone, "conv1", None), getattr(backbone, "maxpool", None)
    if not isinstance(conv, nn.Conv2d) or pool is None:
        raise ValueError(
            f"backbone.stem=small knows ResNets with conv1 and maxpool; {name} has another stem: "
            "choose backbone.stem=imagenet"
        )
    backbone.conv1 = nn.Conv2d(in_channels, conv.out_channels, 3, 1, 1, bias=conv.bias is not None)
    backbone.maxpool = nn.Identity()


@torch.no_grad()
def _embed_dim(backbone: nn.Module, name: str, in_channels: int, image_size: int) -> int:
    """Width of the features, found by encoding one blank image."""
    was_training = backbone.training
    backbone.eval()  # keeps the norms' running statistics
    try:
        z = backbone(torch.zeros(1, in_channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{name} cannot encode {in_channels} x {image_size} x {image_size} images: {error}"
        ) from error
    backbone.train(was_training)
    if not isinstance(z, Tensor) or z.ndim != 2:
        shape = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"{name} gives no pooled (N, D) features but {shape}")
    return z.shape[1]

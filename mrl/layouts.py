"""How the original authors' checkpoints spell a model.

A released file is a bare state dict of torchvision's ResNet-18/34/50/101 or ConvNeXt-Tiny whose
last layer was replaced.  Nothing else describes it: a :class:`Layout` is what its names tell.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mrl.model import MRLModel

# (bottleneck blocks?, blocks in each stage)
_RESNETS = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
}
CONVNEXT = "convnext_tiny"
ARCHITECTURES = (*_RESNETS.values(), CONVNEXT)
# Where the last layer stands: in torchvision's ResNets, torchvision's ConvNeXt, timm's ConvNeXt.
HEAD = re.compile(r"(fc|classifier\.2|head\.fc)\.(?:nesting_classifier_(\d+)\.)?(weight|bias)")

_BLOCK = {
    "gamma": "layer_scale",
    "conv_dw": "block.0",
    "norm": "block.2",
    "mlp.fc1": "block.3",
    "mlp.fc2": "block.5",
}
# timm's names of a ConvNeXt's tensors (ours), and torchvision's.
_CONVNEXT_NAMES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"stem\.", lambda m: "features.0."),
    (r"head\.norm\.", lambda m: "classifier.0."),
    (r"stages\.(\d)\.downsample\.", lambda m: f"features.{2 * int(m[1])}."),
    (
        rf"stages\.(\d)\.blocks\.(\d+)\.({'|'.join(_BLOCK)})(?=\.|$)",
        lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.{_BLOCK[m[3]]}",
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The architecture and the spelling of one released file."""

    architecture: str  # one of ARCHITECTURES
    blur_pool: bool
    head: str  # prefix of the classifiers' names
    nested: bool  # classifiers are numbered below it, as nesting_classifier_i
    torchvision: bool  # a ConvNeXt has torchvision's names, not timm's


def layout_of(weights: Mapping[str, Tensor]) -> Layout:
    """The layout of a released state dict.

    Raises:
        ValueError: if the names are of no model that the authors released.
    """
    heads = [match for match in map(HEAD.fullmatch, weights) if match and match[3] == "weight"]
    prefixes = sorted({match[1] for match in heads})
    if len(prefixes) != 1 or any(weights[match[0]].ndim != 2 for match in heads):
        found = f"classifiers at {' and '.join(prefixes)}" if prefixes else "no linear classifier"
        raise ValueError(
            f"not one of the authors' models: {found} where one layer was expected, "
            f"among {some(weights)}"
        )
    return Layout(
        architecture=_architecture(weights),
        blur_pool=has_blur_pool(weights),
        head=prefixes[0],
        nested=any(match[2] is not None for match in heads),
        torchvision=has_torchvision_names(weights),
    )


def _architecture(weights: Mapping[str, Tensor]) -> str:
    if "features.0.0.weight" in weights or "stem.0.weight" in weights:
        return CONVNEXT  # of which size, the comparison of all shapes tells
    blocks = {m[1] + m[2] for m in (re.match(r"layer([1-4])\.(\d+)\.", n) for n in weights) if m}
    depth = tuple(sum(block.startswith(stage) for block in blocks) for stage in "1234")
    bottleneck = "layer1.0.conv3.weight" in weights
    if (bottleneck, depth) not in _RESNETS:
        found = f"a ResNet of {depth} blocks" if any(depth) else f"tensors such as {some(weights)}"
        raise ValueError(
            f"not one of the authors' models ({', '.join(ARCHITECTURES)}): it has {found}"
        )
    return _RESNETS[bottleneck, depth]


def has_blur_pool(weights: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(".blur_filter") for name in weights)


def has_torchvision_names(weights: Mapping[str, Tensor]) -> bool:
    return "features.0.0.weight" in weights


def released_tensors(model: MRLModel, layout: Layout) -> dict[str, Tensor]:
    """Every tensor of ``model`` under its name in ``layout``: views, to read or to fill."""
    named = backbone_tensors(model.backbone.state_dict(), torchvision=layout.torchvision)
    for name, tensor in model.head.state_dict().items():
        *path, leaf = name.split(".")  # NestedHead: classifiers.8.weight; TiedHead: weight
        i = model.granularities.index(int(path[-1])) if path else 0
        number = f"nesting_classifier_{i}." if layout.nested else ""
        named[f"{layout.head}.{number}{leaf}"] = tensor
    return named


def backbone_tensors(tensors: Mapping[str, Tensor], *, torchvision: bool) -> dict[str, Tensor]:
    """An encoder's tensors, named and shaped as torchvision does (ResNets need no renaming)."""
    if not torchvision or "stem.0.weight" not in tensors:
        return dict(tensors)
    named = {_torchvision_name(name): tensor for name, tensor in tensors.items()}
    return {
        name: tensor.view(-1, 1, 1) if name.endswith(".layer_scale") else tensor
        for name, tensor in named.items()
    }


def _torchvision_name(name: str) -> str:
    for pattern, replacement in _CONVNEXT_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor that is missing, of another shape, or not expected."""
    lines = [f"{name} is missing" for name in expected if name not in given]
    lines += [
        f"{name} has shape {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    return lines + [f"{name} is unexpected" for name in given if name not in expected]


def some(names: Iterable[str]) -> str:
    """The first few."""
    return ", ".join(list(names)[:5]) or "nothing"

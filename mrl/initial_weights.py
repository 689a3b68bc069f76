"""The first weights of an encoder, out of any file that holds the same encoder.

A run or a checkpoint of ours, an export, one of the authors' files, or a plain state dict as timm,
torchvision and Lightning save it: with its classifier beside it, below a prefix such as
``module.``, or inside ``{"state_dict": ...}``.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mrl.checkpoint import (
    CheckpointError,
    is_checkpoint,
    load_model,
    read_file,
    read_safetensors,
)
from mrl.data.pixels import INTERPOLATIONS, Pixels
from mrl.export import read_source
from mrl.layouts import (
    HEAD,
    backbone_tensors,
    has_blur_pool,
    has_torchvision_names,
    mismatches,
    some,
)
from mrl.model import MRLModel
from mrl.released import fill

if TYPE_CHECKING:
    from mrl.config import BackboneConfig

# Where a training script keeps the state dict in its checkpoint; averaged weights go before others.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_COUNTER = "num_batches_tracked"  # of batch norms with momentum it decides nothing


def load_backbone_weights(model: MRLModel, path: str | Path) -> None:
    """Give ``model`` the encoder in ``path``; the head keeps its own weights (paper, Table 26).

    Position embeddings of another image size are resampled, as timm does with its own weights.

    Raises:
        CheckpointError: if the file cannot be read, or its encoder is another (the first tensors
            that do not fit are listed); ``model`` is unchanged then.
    """
    path = Path(path)
    tensors: Mapping[str, Tensor] = model.backbone.state_dict()
    if holds_model(path):
        weights: Mapping[str, Tensor] = load_model(path).backbone.state_dict()
    else:
        weights = _named_tensors(path)
        tensors = backbone_tensors(tensors, torchvision=has_torchvision_names(weights))
        weights = _adapted(_encoder(weights, tensors, model.backbone), model.backbone)
    blurred = has_blur_pool(weights)
    advice = f" (backbone.blur_pool={blurred} fits it)".lower()
    failure = f"the encoder in {path} is another than the one to start"
    counters = {name: t for name, t in tensors.items() if name.endswith(_COUNTER)}
    fill(
        tensors,
        {**counters, **weights},
        failure + (advice if blurred != has_blur_pool(tensors) else ""),
    )


def pixels_of_weights(backbone: "BackboneConfig") -> tuple[Pixels, str] | None:
    """How the weights that a run starts from want their pixels, and whose word that is.

    None: it starts from random weights, or nobody said.
    """
    if backbone.init is None:
        return _pixels_of_timm(backbone.name) if backbone.pretrained else None
    try:
        return read_source(backbone.init).pixels, backbone.init
    except CheckpointError:  # a plain state dict says nothing of pixels
        return _pixels_of_timm(backbone.name)


def _pixels_of_timm(name: str) -> tuple[Pixels, str] | None:
    """As timm trained the weights that it has under this name."""
    from timm.models import get_pretrained_cfg  # takes a second

    cfg = get_pretrained_cfg(name)
    if cfg is None:
        return None
    interpolation = cfg.interpolation if cfg.interpolation in INTERPOLATIONS else "bilinear"
    pixels = Pixels(
        mean=cfg.mean, std=cfg.std, crop_ratio=cfg.crop_pct, interpolation=interpolation
    )
    return pixels, f"timm's {name}, trained at {cfg.input_size[-1]} px"


def holds_model(path: Path) -> bool:
    """Whether ``path`` is a whole model of ours: a run, a checkpoint, or an export."""
    if path.suffix == ".safetensors":
        return path.with_suffix(".json").exists()
    return path.is_dir() or is_checkpoint(path)


def _named_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, unwrapped."""
    found: object = read_safetensors(path) if path.suffix == ".safetensors" else read_file(path)
    inside = None
    if isinstance(found, Mapping):
        inside = next((name for name in _WRAPPERS if isinstance(found.get(name), Mapping)), None)
        found = found if inside is None else found[inside]
    if not isinstance(found, Mapping) or not found:
        raise CheckpointError(f"{path} holds no named tensors but a {type(found).__name__}")
    others = [str(name) for name, w in found.items() if not isinstance(w, Tensor)]
    if others:
        raise CheckpointError(
            f"{path} holds no state dict{f' in {inside!r}' if inside else ''}: {some(others)} are "
            f"no tensors. Known are tensors by name, or such a dict as {', '.join(_WRAPPERS)}"
        )
    return {str(name): w for name, w in found.items()}


def _encoder(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], backbone: nn.Module
) -> dict[str, Tensor]:
    """The weights below the prefix of the encoder, without it and without classifiers."""
    prefix = _prefix(weights, tensors)
    below = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    heads = _classifiers(backbone)
    return {
        name: w
        for name, w in below.items()
        if name in tensors or not (HEAD.fullmatch(name) or name.rpartition(".")[0] in heads)
    }


def _prefix(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """What stands before the encoder's own names: "" or, say, "module.backbone."."""
    first = next((name for name in tensors if not name.endswith(_COUNTER)), "")
    before = {n.removesuffix(first) for n in weights if n == first or n.endswith(f".{first}")}
    return max(
        sorted(before | {""}),
        key=lambda prefix: sum(f"{prefix}{name}" in weights for name in tensors),
    )


def _classifiers(backbone: nn.Module) -> set[str]:
    """Modules that timm calls the classifiers of this network."""
    named = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    return {named} if isinstance(named, str) else set(named)


def _adapted(weights: dict[str, Tensor], backbone: nn.Module) -> Mapping[str, Tensor]:
    """As timm makes weights of this architecture fit: image size, and names of older versions."""
    adapt = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if adapt is None or not mismatches(backbone.state_dict(), weights):
        return weights
    try:
        return adapt(dict(weights), backbone)
    except Exception:  # it takes the weights for its own; what does not fit is said by name
        return weights

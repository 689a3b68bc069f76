"""The original authors' checkpoints, loaded strictly: kind, widths and architecture inferred.

D is the embedding width, C the number of classes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mrl.backbones import build_backbone
from mrl.checkpoint import CheckpointError, read_file
from mrl.heads import NestedHead, TiedHead
from mrl.layouts import (
    CONVNEXT,
    HEAD,
    Layout,
    layout_of,
    mismatches,
    released_tensors,
)
from mrl.model import MRLModel
from mrl.nesting import log_spaced

IMAGE_SIZE = 224  # pixels at which the authors evaluate, with ImageNet's mean and deviation
KINDS = ("MRL", "MRL-E", "FF")
_HINT = re.compile(r"mrl([01])_e([01])")  # in file names: r50_mrl1_e0_ff2048.pt
_SHOWN = 5  # tensors that do not fit


def is_state_dict(path: Path) -> bool:
    """Whether ``path`` holds named tensors and nothing else, as the authors' files do."""
    try:  # PyTorch would read safetensors, too
        return path.suffix != ".safetensors" and bool(_read(path))
    except CheckpointError:
        return False


def load_released(
    path: str | Path, *, kind: str | None = None, granularities: Sequence[int] | None = None
) -> MRLModel:
    """The model in one of the authors' files, in eval mode on the CPU.

    Args:
        path: the file.  Its name is read only where the tensors leave two readings: a single
            classifier (C, D) is MRL-E's or that of the baseline FF-D.  "mrl0_e0" in the name says
            FF, "mrl0_e1" or "mrl1_e1" MRL-E.
        kind: "MRL", "MRL-E" or "FF": goes before the name where the tensors leave two readings.
        granularities: of MRL-E, which its file does not tell; default: D and its halvings down to
            8 (ConvNeXt: 48), those of the paper.

    Raises:
        CheckpointError: for a file that is none of these models (with the first tensors that do
            not fit), is damaged, leaves the kind open, or contradicts ``kind`` or
            ``granularities``.
    """
    path = Path(path)
    model, _ = read_released(path, kind=kind, granularities=granularities)
    return model


def read_released(
    path: Path, *, kind: str | None = None, granularities: Sequence[int] | None = None
) -> tuple[MRLModel, Layout]:
    """As :func:`load_released`, with what the names told."""
    weights = _read(path)
    try:
        layout = layout_of(weights)
        backbone, embed_dim = build_backbone(
            layout.architecture, image_size=IMAGE_SIZE, blur_pool=layout.blur_pool
        )
        head = _head_of(weights, layout, embed_dim, path.name, kind, granularities)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model = MRLModel(backbone, head)
    failure = f"{path} does not fit {layout.architecture}"
    fill(released_tensors(model, layout), weights, failure)
    return model.eval(), layout


def _read(path: Path) -> dict[str, Tensor]:
    """The named tensors in a file, without the prefix that DistributedDataParallel puts on."""
    # Mapped, not read: whoever asks for the names only waits for no weights.
    weights = read_file(path, mmap=True)
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(w, Tensor) for name, w in weights.items()
    ):
        raise CheckpointError(f"{path} is no state dict: it holds other things than named tensors")
    wrapped = all(name.startswith("module.") for name in weights)
    return {name.removeprefix("module.") if wrapped else name: w for name, w in weights.items()}


def _head_of(
    weights: Mapping[str, Tensor],
    layout: Layout,
    embed_dim: int,
    file_name: str,
    kind: str | None,
    granularities: Sequence[int] | None,
) -> NestedHead | TiedHead:
    """A head of the file's kind and widths, its weights not yet loaded."""
    found = [match for match in map(HEAD.fullmatch, weights) if match]
    shapes = {int(m[2] or 0): weights[m[0]].shape for m in found if m[3] == "weight"}
    widths = [shapes[i][1] for i in sorted(shapes)]
    num_classes = shapes[min(shapes)][0]
    bias = any(match[3] == "bias" for match in found)
    kind = _kind_of(widths, embed_dim, layout.nested, file_name, kind)
    if kind == "MRL-E":
        smallest = 48 if layout.architecture == CONVNEXT else 8
        widths = list(granularities or log_spaced(embed_dim, smallest))
        return TiedHead(embed_dim, num_classes, widths, bias)
    if granularities is not None and list(granularities) != widths:
        raise ValueError(f"it holds {kind} at {widths}, not at {list(granularities)}")
    return NestedHead(embed_dim, num_classes, widths, bias)


def _kind_of(
    widths: list[int], embed_dim: int, nested: bool, file_name: str, kind: str | None
) -> str:
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    possible = ["FF"] if len(widths) == 1 else ["MRL"]
    if widths == [embed_dim]:
        possible = ["MRL-E"] if nested else ["MRL-E", "FF"]
    if kind is not None and kind not in possible:
        raise ValueError(f"classifiers of widths {widths} are {' or '.join(possible)}, not {kind}")
    if len(possible) == 1 or kind is not None:
        return kind or possible[0]
    if hinted := hinted_kind(file_name):
        return hinted
    raise ValueError(
        f"its one classifier of width {embed_dim} may be that of MRL-E or of FF-{embed_dim}, and "
        'the file name does not tell: mrl.released.load_released(path, kind="MRL-E") or '
        'kind="FF", or a name with mrl0_e1 (MRL-E) or mrl0_e0 (FF)'
    )


def hinted_kind(file_name: str) -> str | None:
    """What a file name says of a single classifier: "FF", "MRL-E", or nothing."""
    hint = _HINT.search(file_name)
    if hint is None:
        return None
    return "MRL-E" if hint[2] == "1" else "FF" if hint[1] == "0" else None


@torch.no_grad()
def fill(tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], failure: str) -> None:
    """Copy ``weights`` into ``tensors``, all or none."""
    wrong = mismatches(tensors, weights)
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CheckpointError(f"{failure}: {'; '.join(wrong[:_SHOWN])}{more}")
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])

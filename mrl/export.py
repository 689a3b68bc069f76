"""Models for other programs: in the original authors' layout, or as safetensors with a description.

``onnx_export.py`` writes ONNX graphs.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mrl.backbones import build_backbone
from mrl.checkpoint import (
    CheckpointError,
    config_of,
    load_checkpoint,
    model_of,
    read_safetensors,
)
from mrl.data.pixels import Pixels
from mrl.files import write_atomically
from mrl.heads import HEADS, build_head, method_name
from mrl.layouts import ARCHITECTURES, CONVNEXT, Layout, released_tensors
from mrl.model import MRLModel
from mrl.released import IMAGE_SIZE, fill, hinted_kind, is_state_dict, read_released

FORMAT = 1  # of the description; another number is another meaning


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A trained model and what rebuilds it: the arguments of :func:`mrl.backbones.build_backbone`,
    how pictures become its input, and what the classes are called, where known.
    """

    model: MRLModel
    backbone: dict[str, Any]
    pixels: Pixels
    classes: list[str] | None

    def description(self) -> dict[str, Any]:
        """For JSON: all but the weights."""
        head = self.model.head
        kinds = {head_class: kind for kind, head_class in HEADS.items()}
        return {
            "format": FORMAT,
            "backbone": self.backbone,
            "head": {
                "kind": kinds[type(head)],
                "embed_dim": head.embed_dim,
                "num_classes": head.num_classes,
                "granularities": head.granularities,
                "bias": any(name.endswith("bias") for name in head.state_dict()),
            },
            **self.pixels.to_dict(),
            "classes": self.classes,
        }


def read_source(path: str | Path, *, kind: str | None = None) -> Source:
    """The model at ``path`` (a run directory, a checkpoint, a released file, an export).

    Args:
        kind: of a released file that leaves it open (see :func:`mrl.released.load_released`).

    Raises:
        CheckpointError: if there is no usable model.
        ValueError: if ``kind`` is given for another file.
    """
    path = Path(path)
    is_released = is_state_dict(path)
    if kind is not None and not is_released:
        raise ValueError(f"{path} tells its own kind: leave out kind={kind}")
    if path.suffix == ".safetensors":
        return _read_exported(path)
    from mrl.data.datasets import SOURCES, noted_pixels  # torchvision: an export needs none

    if is_released:
        model, layout = read_released(path, kind=kind)
        backbone = {"name": layout.architecture, "image_size": IMAGE_SIZE}
        backbone |= {"in_channels": 3, "blur_pool": layout.blur_pool}
        pixels, classes = SOURCES["imagefolder"].pixels, None
    else:
        state = load_checkpoint(path)
        cfg, model, classes = config_of(state), model_of(state), list(state["data"]["classes"])
        backbone = {
            "name": cfg.backbone.name,
            "image_size": cfg.data.image_size,
            "in_channels": state["data"]["in_channels"],
            "widths": cfg.backbone.widths,
            "blocks": cfg.backbone.blocks,
            "small_stem": cfg.backbone.stem.name == "small",
            "blur_pool": cfg.backbone.blur_pool,
        }
        pixels = noted_pixels(state["data"], cfg.data)
    return Source(model=model, backbone=backbone, pixels=pixels, classes=classes)


def export_released(source: Source, out: Path) -> None:
    """Write the original authors' layout: a bare state dict with torchvision's names.

    It says nothing of MRL-E's granularities: :func:`mrl.released.load_released` takes them.

    Raises:
        ValueError: for an encoder that they did not release, or FF-D under a file name by which it
            could be MRL-E.
    """
    model, name = source.model, source.backbone["name"].split(".")[0]
    plain = source.backbone["in_channels"] == 3 and not source.backbone.get("small_stem")
    if name not in ARCHITECTURES or not plain:
        raise ValueError(
            f"the authors' layout knows {', '.join(ARCHITECTURES)} on RGB images with their own "
            f"stem, not this {name}: export to safetensors or onnx"
        )
    nested = method_name(model.head) != "FF"
    if model.granularities == [model.embed_dim] and not nested and hinted_kind(out.name) != "FF":
        raise ValueError(
            f"FF-{model.embed_dim} has the same layout as an MRL-E, and only the file name tells "
            f"them apart: put mrl0_e0 into the name {out.name}"
        )
    layout = Layout(
        architecture=name,
        blur_pool=bool(source.backbone.get("blur_pool")),
        head="classifier.2" if name == CONVNEXT else "fc",
        nested=nested,
        torchvision=True,
    )
    buffer = io.BytesIO()
    torch.save(released_tensors(model, layout), buffer)
    write_atomically(out, buffer.getvalue())


def export_safetensors(source: Source, out: Path) -> None:
    """Write the weights to ``out`` (.safetensors) and the description beside them (.json).

    ``mrl.load_model(out)`` reads them back.
    """
    from safetensors.torch import save  # comes with timm

    text = json.dumps(source.description(), indent=2)
    weights = {name: w.contiguous() for name, w in source.model.state_dict().items()}
    content = save(weights)
    write_atomically(out.with_suffix(".json"), text.encode())
    write_atomically(out, content)


def load_exported(path: str | Path) -> MRLModel:
    """The model that :func:`export_safetensors` wrote, in eval mode on the CPU.

    Raises:
        CheckpointError: if a file is missing or damaged, or the weights are another model's.
    """
    return _read_exported(Path(path)).model


def _read_exported(path: Path) -> Source:
    described = path.with_suffix(".json")
    try:
        facts = json.loads(described.read_text())
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, not {FORMAT}")
        backbone, _ = build_backbone(**facts["backbone"])
        model = MRLModel(backbone, build_head(**facts["head"]))
        source = Source(
            model=model.eval(),
            backbone=facts["backbone"],
            pixels=Pixels.from_dict(facts),
            classes=facts["classes"],
        )
    except OSError as error:
        raise CheckpointError(
            f"{path} needs its description {described}: {error.strerror}"
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{described} describes no model: {type(error).__name__}: {error}"
        ) from error
    weights = read_safetensors(path)
    fill(model.state_dict(), weights, f"{path} does not fit its description {described.name}")
    return source

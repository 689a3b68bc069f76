"""Models as ONNX graphs: prefixes fixed in the file, or of a width given with the images.

N images, D embedding width, M prefix width, C classes.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from mrl.export import Source
from mrl.files import write_atomically
from mrl.heads import TiedHead
from mrl.model import MRLModel
from mrl.nesting import check_granularities, prefix, truncate, unit

INSTALL = "pip install onnx onnxscript"


class _FixedWidths(nn.Module):
    """images -> for each width, unit prefixes (N, M) and, where a classifier exists, logits."""

    def __init__(self, model: MRLModel, widths: Sequence[int]) -> None:
        super().__init__()
        self.model, self.widths = model, widths

    def names(self) -> list[str]:
        heads = [m for m in self.widths if self._has_classifier(m)]
        return [f"embedding_{m}" for m in self.widths] + [f"logits_{m}" for m in heads]

    def forward(self, images: Tensor) -> list[Tensor]:
        z = self.model.encode(images)
        embeddings = [truncate(z, m) for m in self.widths]
        return embeddings + [self._logits(z, m) for m in self.widths if self._has_classifier(m)]

    def _has_classifier(self, m: int) -> bool:
        return isinstance(self.model.head, TiedHead) or m in self.model.granularities

    def _logits(self, z: Tensor, m: int) -> Tensor:
        head = self.model.head
        if isinstance(head, TiedHead):
            return head.logits_at(z, m)
        return head.classifiers[str(m)](prefix(z, m))


class _WidthInput(nn.Module):
    """images, width (a scalar int64) -> unit prefixes (N, width)."""

    def __init__(self, model: MRLModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, width: Tensor) -> Tensor:
        m = width.item()  # int() around it would need its value when the graph is made
        torch._check(m >= 1)
        torch._check(m <= self.model.embed_dim)
        # By indices: a slice beyond D would silently give D columns, an index beyond it fails.
        indices = torch.arange(m, device=images.device)
        return unit(self.model.encode(images).index_select(1, indices))


def export_onnx(
    source: Source, out: Path, *, widths: Sequence[int] | None = None, width_input: bool = False
) -> list[str]:
    """Write an ONNX graph from normalised images (any N) to embeddings and logits.

    The prefixes are cut, then normalised, as :func:`mrl.truncate` does. The graph's metadata
    ("mrl") hold how to normalise pixels and which classes there are.

    Args:
        widths: of the outputs "embedding_M" (N, M) and "logits_M" (N, C); default: the
            granularities.  MRL and FF have logits at the widths they were trained at only.
        width_input: one output "embedding" (N, width) and a second input "width" instead: a scalar
            int64 in 1..D.

    Returns:
        The names of the outputs.

    Raises:
        ImportError: if PyTorch's exporter lacks a package; it says which to install.
        ValueError: for widths that do not fit, or an encoder that cannot be exported.
    """
    absent = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if absent:
        raise ImportError(f"the ONNX export needs {' and '.join(absent)}: {INSTALL}")
    if width_input and widths is not None:
        raise ValueError("widths are fixed or an input: give one of the two")
    model, facts = source.model, source.description()
    size, channels = source.backbone["image_size"], source.backbone["in_channels"]
    images = torch.zeros(2, channels, size, size)  # 1 would be taken for a fixed batch size
    shapes: dict[str, dict[int, str]] = {"images": {0: "N"}}
    if width_input:
        names = ["embedding"]
        graph: nn.Module = _WidthInput(model)
        inputs: tuple[Tensor, ...] = (images, torch.tensor(model.embed_dim))
        shapes["width"] = {}
    else:
        chosen = check_granularities(widths or model.granularities, model.embed_dim)
        graph = _FixedWidths(model, chosen)
        names, inputs = graph.names(), (images,)
    _write(graph, inputs, shapes, names, json.dumps(facts), out)
    return names


def _write(
    graph: nn.Module,
    inputs: tuple[Tensor, ...],
    shapes: dict[str, dict[int, str]],
    names: Sequence[str],
    facts: str,
    out: Path,
) -> None:
    try:
        program = torch.onnx.export(
            graph.eval(),
            inputs,
            input_names=list(shapes),
            output_names=names,
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(
            f"PyTorch cannot export this encoder: {str(error).splitlines()[0]}"
        ) from error
    assert program is not None  # it is only None where a file is written
    proto = program.model_proto
    proto.metadata_props.add(key="mrl", value=facts)
    write_atomically(out, proto.SerializeToString())

"""What embeddings are of, and all that they depend on: the manifest of a cache entry."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mrl.data import ImageDataset
from mrl.data.identity import identify
from mrl.model import MRLModel

FORMAT = 3  # of the cache; another number makes everything again


def model_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def describe(
    model: MRLModel,
    dataset: ImageDataset,
    *,
    name: str,
    split: str,
    transform: Mapping[str, Any],
    feature_type: str = "float32",
) -> dict[str, Any]:
    """The manifest: what the embeddings are of, and all that they depend on."""
    return {
        "format": FORMAT,
        "model": model_hash(model),
        "dataset": name,
        "split": split,
        "num_images": len(dataset),
        "images": identify(dataset).exact,
        "transform": dict(transform),
        "width": model.embed_dim,
        "type": feature_type,
    }


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data

"""Encode a split once, at full width, and keep the embeddings on disk by content.

The folder of a cache entry is named after everything that the embeddings depend on: a changed
checkpoint, data set, split or transform is another entry, and an old one is never mistaken for it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from mrl.data import ImageDataset, Loader
from mrl.evaluation.contract import Features
from mrl.model import MRLModel

FORMAT = 1  # of the cache; another number makes everything again


def model_hash(model: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def dataset_hash(dataset: ImageDataset) -> str:
    """SHA-256 over labels and pixels, or over labels and paths where images are files."""
    digest = hashlib.sha256(_bytes(dataset.labels))
    images = dataset.images
    digest.update(
        _bytes(images if isinstance(images, Tensor) else torch.from_numpy(images.view("u1")))
    )
    return digest.hexdigest()


def describe(
    model: MRLModel,
    dataset: ImageDataset,
    *,
    name: str,
    split: str,
    transform: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest: what the embeddings are of, and all that they depend on."""
    return {
        "format": FORMAT,
        "model": model_hash(model),
        "dataset": name,
        "split": split,
        "num_images": len(dataset),
        "images": dataset_hash(dataset),
        "transform": dict(transform),
        "width": model.embed_dim,
    }


def extract(
    model: MRLModel,
    loader: Loader,
    manifest: Mapping[str, Any],
    folder: Path,
    *,
    device: torch.device,
) -> Features:
    """The embeddings that ``manifest`` describes: from the cache, or encoded now and put there.

    Args:
        loader: over the data set in order, without augmentation.
        folder: the cache; entries are sub-folders with embeddings.npy (float32, read through a
            memory map), labels.npy (int64) and manifest.json.

    Raises:
        ValueError: if the model gives NaN or infinite embeddings.
    """
    text = json.dumps(manifest, sort_keys=True, indent=1)
    entry = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    cached = _read(entry, text)
    if cached is not None:
        return cached
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".partial-{entry.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _encode(model, loader, manifest, temporary, device)
        (temporary / "manifest.json").write_text(text)
        shutil.rmtree(entry, ignore_errors=True)  # damaged, or it would have been read
        os.replace(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    made = _read(entry, text)
    if made is None:
        raise OSError(f"{entry} could not be read back after it was written")
    return made


@torch.inference_mode()
def _encode(
    model: MRLModel, loader: Loader, manifest: Mapping[str, Any], folder: Path, device: torch.device
) -> None:
    count = manifest["num_images"]
    shape = (count, manifest["width"])
    z_ND = open_memmap(folder / "embeddings.npy", mode="w+", dtype=np.float32, shape=shape)
    labels_N = np.empty(count, dtype=np.int64)
    model = model.to(device).eval()
    start = 0
    with tqdm(total=count, desc=f"encode {manifest['split']}", unit="img", leave=False) as bar:
        for images, labels in loader.batches(0):
            stop = start + len(images)
            z = model.encode(images.to(device)).float().cpu()
            if not torch.isfinite(z).all():
                raise ValueError(
                    f"the model gives NaN or infinite embeddings, first among images {start} to "
                    f"{stop - 1} of {manifest['split']}: its weights are unusable"
                )
            z_ND[start:stop], labels_N[start:stop] = z.numpy(), labels.numpy()
            start = stop
            bar.update(len(images))
    if start != count:
        raise RuntimeError(f"the loader gave {start} of {count} images")
    z_ND.flush()
    np.save(folder / "labels.npy", labels_N)


def _read(entry: Path, manifest: str) -> Features | None:
    """The entry, or None if there is none or it is damaged."""
    try:
        if (entry / "manifest.json").read_text() != manifest:
            return None
        # Copy-on-write: torch has no read-only tensors, and the file must not change.
        z_ND = np.load(entry / "embeddings.npy", mmap_mode="c")
        labels_N = np.load(entry / "labels.npy")
    except (OSError, ValueError, EOFError):
        return None
    wanted = json.loads(manifest)
    if z_ND.shape != (wanted["num_images"], wanted["width"]) or z_ND.dtype != np.float32:
        return None
    if labels_N.shape != z_ND.shape[:1] or labels_N.dtype != np.int64:
        return None
    return Features(torch.from_numpy(z_ND), torch.from_numpy(labels_N))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data

"""Images per second of feature extraction against the bare forward pass of the same network.

    python benchmarks/feature_extraction.py                        # CPU
    python benchmarks/feature_extraction.py --device cuda --batch 256 --images 8192

Extraction is what eval.py does: uint8 images normalised in batches, moved to the device, encoded in
float32, checked, written to disk with checksums.  Bare: the same network, arithmetic and batch, on
one batch that lies on the device already.  The two take turns, so that a busy machine slows both;
reported are the medians and the median of the ratios of neighbouring turns.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import synchronize
from benchmarks.turns import median_ratio, take_turns
from mrl.backbones import build_backbone
from mrl.data.batches import BatchPlan
from mrl.data.datasets import ImageDataset
from mrl.data.memory_loader import MemoryLoader
from mrl.distributed import Ranks
from mrl.evaluation.features import extract
from mrl.heads import NestedHead
from mrl.model import MRLModel

STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    backbone, width = build_backbone(args.backbone, image_size=args.size)
    model = MRLModel(backbone, NestedHead(width, 10, [width])).to(device).eval()
    shape = (args.images, 3, args.size, args.size)
    images = torch.randint(256, shape, dtype=torch.uint8)
    classes = [str(c) for c in range(10)]
    dataset = ImageDataset(images=images, labels=torch.arange(args.images) % 10, classes=classes)

    cases = {
        "bare": lambda: bare(model, dataset, args.batch, device),
        "extraction": lambda: extraction(model, dataset, args.batch, device),
    }
    seconds = take_turns(cases, args.rounds)
    ratio = median_ratio(seconds["bare"], seconds["extraction"])
    medians = ", ".join(
        f"{name} {args.images / statistics.median(values):.1f}" for name, values in seconds.items()
    )
    print(
        f"{args.backbone}, {args.size} px, batch {args.batch}, {args.images} images on {device}: "
        f"images/s (medians of {args.rounds}): {medians}; extraction / bare {ratio:.3f} "
        "(target 0.97)"
    )


def bare(model: MRLModel, dataset: ImageDataset, batch: int, device: torch.device) -> float:
    """Seconds of as many forward passes as the images take, input and output on the device."""
    images = torch.randn(batch, *dataset.images.shape[1:], device=device)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        model.encode(images)
        synchronize(device)
        start = time.perf_counter()
        for _ in range(len(dataset) // batch):
            model.encode(images)
        synchronize(device)
    return time.perf_counter() - start


def extraction(model: MRLModel, dataset: ImageDataset, batch: int, device: torch.device) -> float:
    """Seconds from the images in memory to the entry on the disk, seen from cold."""

    def load(rows: range, batch_size: int) -> MemoryLoader:
        part = ImageDataset(
            images=dataset.images[rows.start : rows.stop],
            labels=dataset.labels[rows.start : rows.stop],
            classes=dataset.classes,
        )
        plan = BatchPlan(num_images=len(part), batch_size=batch_size, train=False, seed=0)
        return MemoryLoader(part, plan, **STATISTICS, flip=False, pad=0)

    size = {"num_images": len(dataset), "width": model.embed_dim}
    manifest = size | {"split": "test", "type": "float32"}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        extract(
            model,
            load,
            manifest,
            Path(folder),
            batch_size=batch,
            device=device,
            ranks=Ranks(),
        )
        return time.perf_counter() - start


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=128, help="a multiple of the batch")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.images % args.batch:
        parser.error(f"--images {args.images} is no multiple of --batch {args.batch}")
    return args


if __name__ == "__main__":
    main()

"""Speed of training: the whole step of MRL against FF, the loop against a bare one, and the GPU.

    python benchmarks/training.py                          # about 5 minutes on two CPU cores
    python benchmarks/training.py --parts step --threads 1 --clock cpu    # on a busy machine
    python benchmarks/training.py --device cuda
    python benchmarks/training.py --parts gpu --device cpu --size 32 --batch 4 --rounds 1   # a try

step: images in, weights updated: ResNet-50, 1000 classes, D 2048, MRL and MRL-E at 9 widths against
FF-2048 through the same code, the same batch on the device.
loop: `mrl.train_loop.fit` against forward, backward and optimizer step in a bare loop: same model,
optimizer, precision and batches. fit makes its data in memory, tracks nowhere and saves at its end;
its time is its own record's (metrics.jsonl: the images/s between two lines of the log, with the
loader, the progress bar and the log itself), that of bare's runs of as many steps likewise. The
first of these windows warms up and does not count. Bare takes its batches ready from a list, or
from the same loader: against the first the loader's work is part of the overhead.
gpu: ResNet-50 in bf16, compiled and not, against the loop that one would write without this
project: fp16 autocast, gradient scaler, channels_last, one loss per width. Its share of the peak is
of a large bf16 matrix product measured in the same run; only the model's own FLOPs count, as of one
forward and backward pass with a head of plain products.

The cases take turns, in an order that moves by one each round, so that a busy machine slows all of
them. Shown are medians; a ratio is the median over the rounds of the ratio within a round, and in
brackets is what the middle half of the rounds gave.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training_gpu import on_gpu
from benchmarks.training_loop import LOG_EVERY, loop_overhead
from benchmarks.training_step import whole_step
from benchmarks.turns import CLOCKS
from mrl.distributed import pick_device
from mrl.tracking import device_name

# Where an option was not given. loop: (backbone, pixels, batch) whose step takes tens of ms.
DEFAULTS = {
    "cpu": {"size": 128, "batch": 32, "rounds": 15, "loop": ("resnet_small", 28, 128)},
    "cuda": {"size": 192, "batch": 256, "rounds": 15, "loop": ("resnet50", 64, 256)},
}
PARTS = {"step": whole_step, "loop": loop_overhead, "gpu": on_gpu}


def main() -> None:
    args = arguments()
    device = args.device
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    name = device_name(device)
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    print(f"{name}, CPU threads: {args.threads} of {os.cpu_count()}{load}")
    print(f"torch {torch.__version__}, {args.rounds} rounds, {args.clock} time (loop: wall)\n")
    for part in args.parts:
        PARTS[part](args, device)
    if "gpu" not in args.parts and device.type != "cuda":
        print(f"ResNet-50 on a GPU: not run (device: {device.type})")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", choices=PARTS, nargs="+", help="default: all, gpu on a GPU only")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--size", type=int, help="pixels")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--loop-backbone")
    parser.add_argument("--loop-size", type=int)
    parser.add_argument("--loop-batch", type=int)
    parser.add_argument("--loop-rounds", type=int, default=8)
    parser.add_argument("--windows", type=int, default=3, help=f"of {LOG_EVERY} steps, in a run")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    args.device = pick_device(args.device)
    defaults = DEFAULTS[args.device.type]
    if args.clock == "cpu" and args.device.type == "cuda":
        parser.error("--clock cpu does not see the GPU's time")
    if args.parts is None:
        args.parts = [part for part in PARTS if part != "gpu" or args.device.type == "cuda"]
    for key in ("size", "batch", "rounds"):
        setattr(args, key, getattr(args, key) or defaults[key])
    given = (args.loop_backbone, args.loop_size, args.loop_batch)
    args.loop = tuple(a or b for a, b in zip(given, defaults["loop"], strict=True))
    return args


if __name__ == "__main__":
    main()

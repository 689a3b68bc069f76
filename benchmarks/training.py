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
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import processor, synchronize
from mrl import config
from mrl.config import BackboneConfig, DataConfig, HeadConfig, OptimConfig, TrainConfig
from mrl.data import Loader, build_loader, load_splits
from mrl.distributed import Ranks, pick_device
from mrl.losses import nested_cross_entropy, weighted_sum
from mrl.model import MRLModel, build_model, model_for
from mrl.nesting import log_spaced
from mrl.optim import build_optimizer, peak_lr
from mrl.precision import autocast, pick_precision
from mrl.train_loop import NestedObjective, fit
from mrl.train_state import TrainState

D, CLASSES = 2048, 1000
WIDTHS = log_spaced(D)
HEADS = {
    "FF": HeadConfig(granularities=[D]),
    "MRL-E": HeadConfig(kind=config.HeadKind["tied"]),
    "MRL": HeadConfig(),
}
PLAIN = "plain fp16 loop"
WARMUP = 3  # rounds that do not count
LOG_EVERY = 25  # steps of a window of the loop's record; the default of tracking.log_every is 50
LR = 1e-3
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Where an option was not given. loop: (backbone, pixels, batch) whose step takes tens of ms.
DEFAULTS = {
    "cpu": {"size": 128, "batch": 32, "rounds": 15, "loop": ("resnet_small", 28, 128)},
    "cuda": {"size": 192, "batch": 256, "rounds": 15, "loop": ("resnet50", 64, 256)},
}
Step = Callable[[], object]


def main() -> None:
    args = arguments()
    device = args.device
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    print(f"{name}, CPU threads: {args.threads} of {os.cpu_count()}{load}")
    print(f"torch {torch.__version__}, {args.rounds} rounds, {args.clock} time (loop: wall)\n")
    for part in args.parts:
        PARTS[part](args, device)
    if "gpu" not in args.parts and device.type != "cuda":
        print(f"ResNet-50 on a GPU: not run (device: {device.type})")


# ---- the whole step ----


def whole_step(args: argparse.Namespace, device: torch.device) -> None:
    precision = pick_precision(args.precision, device)
    batch = make_batch(args, device)
    steps = {name: our_step(head, batch, precision) for name, head in HEADS.items()}
    seconds = take_turns(timed(steps, args, device), args.rounds, WARMUP)
    print(f"ResNet-50, {args.size} px, batch {args.batch}, {precision} on {device.type}\n")
    print("| whole step | ms | images/s | throughput of FF | at least |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in seconds.items():
        ms = 1000 * statistics.median(values)
        ratio = ratios(seconds["FF"], values)
        target = "" if name == "FF" else "0.99"
        print(f"| {name} | {ms:.1f} | {1000 * args.batch / ms:.1f} | {ratio} | {target} |")
    print(flush=True)


def make_batch(args: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    labels = torch.randint(CLASSES, (args.batch,), device=device)
    return images.contiguous(memory_format=torch.channels_last), labels


def make_model(head: HeadConfig, size: int) -> MRLModel:
    backbone = BackboneConfig(name="resnet50")
    return build_model(backbone, head, num_classes=CLASSES, in_channels=3, image_size=size)


def our_step(
    head: HeadConfig, batch: tuple[Tensor, Tensor], precision: str, compiled: bool = False
) -> Step:
    """What the loop does at a step, with its own parts."""
    images, labels = batch
    device = images.device
    model = make_model(head, images.shape[-1]).to(device, memory_format=torch.channels_last)
    objective = NestedObjective(model.train(), label_smoothing=0.0)
    if compiled:
        objective.compile()
    state = TrainState(model, sgd(batch_size=len(images)), precision, device)
    weights = [1.0] * len(model.granularities)

    def step() -> None:
        with autocast(precision, device):
            total, _ = objective(images, labels, weights)
        state.backward(total)
        state.update(LR)

    return step


def sgd(batch_size: int) -> OptimConfig:
    return OptimConfig(
        name=config.OptimizerName["sgd"],
        epochs=1,
        batch_size=batch_size,
        base_lr=256 * LR / batch_size,
        weight_decay=1e-4,
        schedule=config.Schedule["constant"],
    )


# ---- the loop ----


def loop_overhead(args: argparse.Namespace, device: torch.device) -> None:
    cfg = loop_config(args, device)
    precision = pick_precision(cfg.optim.precision.name, device)
    # No data set is larger than the batches need: one epoch, after which fit saves.
    loader, facts = loop_data(cfg)
    ready = [on_device(batch, device) for batch in loader.batches(0)]
    waits: list[float] = []

    def bare(batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Callable[[], float]:
        return lambda: bare_seconds(cfg, facts, batches(), device, precision)

    names = ("bare, batches ready", "bare, same loader", "mrl.train_loop.fit")
    runs = (bare(lambda: ready), bare(lambda: loader.batches(0)), lambda: fit_seconds(cfg, waits))
    steps = loader.steps - LOG_EVERY  # that count
    seconds = take_turns(dict(zip(names, runs, strict=True)), args.loop_rounds, 0)
    print(
        f"{cfg.backbone.name}, {cfg.data.image_size} px, batch {cfg.optim.batch_size}, MRL, "
        f"{precision} on {device.type}; medians of {args.loop_rounds} runs of {steps} steps\n"
    )
    print("| loop | ms per step | time over bare, ready | over bare, same loader | at most |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, values in seconds.items():
        over = [overhead(values, seconds[base]) if name != base else "" for base in names[:2]]
        target = "3 %" if name == names[2] else ""
        ms = 1000 * statistics.median(values) / steps
        print(f"| {name} | {ms:.2f} | {over[0]} | {over[1]} | {target} |")
    print(f"\nfit waited {statistics.median(waits):.1%} of its time for the loader.\n", flush=True)


def loop_config(args: argparse.Namespace, device: torch.device) -> TrainConfig:
    backbone, size, batch = args.loop
    shape = {"widths": [24, 48, 128], "blocks": [1, 1, 1]} if backbone == "resnet_small" else {}
    optim = sgd(batch)
    optim.precision = config.Precision[args.precision]
    return TrainConfig(
        name="benchmark",
        device=str(device),
        data=DataConfig(
            name=config.DatasetName["synthetic"],
            root="",
            image_size=size,
            num_images=batch * LOG_EVERY * (1 + args.windows),
            holdout=0,
            flip=True,
            pad=2,
        ),
        backbone=BackboneConfig(name=backbone, **shape),
        optim=optim,
        tracking=config.TrackingConfig(log_every=LOG_EVERY),
    )


def loop_data(cfg: TrainConfig) -> tuple[Loader, dict[str, object]]:
    """The loader that fit makes from ``cfg``, and what it notes of the data."""
    splits = load_splits(cfg.data)
    loader = build_loader(
        splits.train,
        cfg=cfg.data,
        mean=splits.mean,
        std=splits.std,
        batch_size=cfg.optim.batch_size,
        train=True,
        seed=cfg.seed,
    )
    return loader, {"classes": splits.classes, "in_channels": splits.in_channels}


def on_device(batch: tuple[Tensor, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    images, labels = batch
    images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
    return images, labels.to(device, non_blocking=True)


def bare_seconds(
    cfg: TrainConfig,
    facts: dict[str, object],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: str,
) -> float:
    torch.manual_seed(cfg.seed)
    model = model_for(cfg, facts).to(device, memory_format=torch.channels_last).train()
    optimizer = build_optimizer(model, cfg.optim)
    for group in optimizer.param_groups:
        group["lr"] = peak_lr(cfg.optim.base_lr, cfg.optim.batch_size)
    for step, batch in enumerate(batches):
        if step == LOG_EVERY:  # warm
            synchronize(device)
            start = time.perf_counter()
        images, labels = on_device(batch, device)
        with autocast(precision, device):
            total, _ = model.head.loss(model.encode(images), labels)
        total.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    synchronize(device)
    return time.perf_counter() - start


def fit_seconds(cfg: TrainConfig, waits: list[float]) -> float:
    """Seconds of the windows but the first, by the run's record; ``waits`` gets the loader's share.

    The record's clock stops when the losses of a window have come from the device.
    """
    silence = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        cfg.run_dir = folder
        with redirect_stdout(silence), redirect_stderr(silence):
            fit(cfg, Ranks(), torch.device(cfg.device))
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][1:]
    images = LOG_EVERY * cfg.optim.batch_size
    seconds = [images / row["speed/images_per_s"] for row in rows]
    shares = [row["speed/data_wait"] for row in rows]
    waits.append(sum(a * b for a, b in zip(shares, seconds, strict=True)) / sum(seconds))
    return sum(seconds)


# ---- the GPU ----


def on_gpu(args: argparse.Namespace, device: torch.device) -> None:
    batch = make_batch(args, device)
    steps = {PLAIN: plain_step(batch)}
    for compiled in (False, True) if args.compile else (False,):
        for name, head in HEADS.items():
            label = f"{name}, compiled" if compiled else name
            steps[label] = our_step(head, batch, "bf16", compiled)
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    cases = timed({"peak": lambda: a @ b, **steps}, args, device)
    seconds = take_turns(cases, args.rounds, WARMUP)
    peak = [2 * n**3 / value for value in seconds.pop("peak")]  # FLOP/s in each round
    flops = {name: training_flops(head, args) for name, head in HEADS.items()} | {
        PLAIN: training_flops(HEADS["MRL"], args)
    }
    print(
        f"ResNet-50, {args.size} px, batch {args.batch}, channels_last, synthetic input on "
        f"{device.type}; peak: {statistics.median(peak) / 1e12:.3g} TFLOP/s (bf16, {n} x {n} "
        f"matrices); MRL: {flops['MRL'] / args.batch / 1e9:.2f} GFLOP an image, FF: "
        f"{flops['FF'] / args.batch / 1e9:.2f}"
    )
    if device.type != "cuda":
        print("This is a try of the code on another device: it says nothing of a GPU.")
    print("\n| step | images/s | of the peak | of FF | of the plain loop | at least |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, values in seconds.items():
        head, *compiled = name.split(", ")
        share = ratios([flops[head] / value for value in values], peak)
        base = ", ".join(["FF", *compiled])
        of_ff = "" if name in (base, PLAIN) else ratios(seconds[base], values)
        of_plain = "" if name == PLAIN else ratios(seconds[PLAIN], values)
        # 1.3 is for the best of ours that trains the same as the plain loop.
        target = {"MRL": "0.99 of FF", "MRL, compiled": "0.99 of FF, 1.3 of plain"}.get(name, "")
        speed = args.batch / statistics.median(values)
        print(f"| {name} | {speed:.1f} | {share} | {of_ff} | {of_plain} | {target} |")
    print(flush=True)


def plain_step(batch: tuple[Tensor, Tensor]) -> Step:
    """MRL as one would write it with PyTorch and timm alone."""
    images, labels = batch
    device = images.device
    encoder = timm.create_model("resnet50", num_classes=0)
    classifiers = nn.ModuleList(nn.Linear(m, CLASSES) for m in WIDTHS)
    model = nn.ModuleList([encoder, classifiers]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.float16):
            z_ND = encoder(images)
            logits = [head(z_ND[:, :m]) for m, head in zip(WIDTHS, classifiers, strict=True)]
            loss = sum(F.cross_entropy(logits_NC, labels) for logits_NC in logits)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def training_flops(head: HeadConfig, args: argparse.Namespace) -> int:
    """Of forward and backward, without the optimizer; counted on shapes alone."""
    model = make_model(head, args.size).to("meta").train()
    images = torch.empty(args.batch, 3, args.size, args.size, device="meta")
    labels = torch.empty(args.batch, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        losses = nested_cross_entropy(model(images), labels)
        weighted_sum(losses, [1.0] * len(losses)).backward()
    return counter.get_total_flops()


# ---- measuring ----


def timed(
    steps: dict[str, Step], args: argparse.Namespace, device: torch.device
) -> dict[str, Callable[[], float]]:
    """Each step as a turn: several in a row where they queue on a GPU; seconds of one."""
    count = 10 if device.type == "cuda" else 1
    clock = CLOCKS[args.clock]

    def turn(step: Step) -> float:
        synchronize(device)
        start = clock()
        for _ in range(count):
            step()
        synchronize(device)
        return (clock() - start) / count

    return {name: lambda step=step: turn(step) for name, step in steps.items()}


def take_turns(
    cases: dict[str, Callable[[], float]], rounds: int, warmup: int
) -> dict[str, list[float]]:
    """Seconds of each case in each round but the first ``warmup``."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = cases[name]()
            if number >= warmup:
                seconds[name].append(value)
    return seconds


def ratios(values: list[float], base: list[float]) -> str:
    """``median (from, to)`` of values / base in the same round; in brackets the middle half."""
    low, median, high = middle([a / b for a, b in zip(values, base, strict=True)])
    return f"{median:.3f} ({low:.3f}, {high:.3f})"


def overhead(values: list[float], base: list[float]) -> str:
    low, median, high = middle([a / b - 1 for a, b in zip(values, base, strict=True)])
    return f"{100 * median:+.1f} % ({100 * low:+.1f}, {100 * high:+.1f})"


def middle(values: list[float]) -> tuple[float, float, float]:
    """The ends of the middle half and, between them, the median."""
    ordered, quarter = sorted(values), len(values) // 4
    return ordered[quarter], statistics.median(values), ordered[-1 - quarter]


PARTS = {"step": whole_step, "loop": loop_overhead, "gpu": on_gpu}


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

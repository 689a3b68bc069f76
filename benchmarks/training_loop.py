"""The training loop against a bare one: same model, optimizer, precision and batches."""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import synchronize
from benchmarks.training_step import sgd
from benchmarks.turns import overhead, take_turns
from mrl import config
from mrl.config import BackboneConfig, DataConfig, TrainConfig
from mrl.data import Loader, build_loader, load_splits
from mrl.distributed import Ranks
from mrl.model import model_for
from mrl.optim import build_optimizer, peak_lr
from mrl.precision import autocast, pick_precision
from mrl.train_loop import fit

LOG_EVERY = 25  # steps of a window of the loop's record; the default of tracking.log_every is 50


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
        pixels=splits.pixels,
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

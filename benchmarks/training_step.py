"""The whole step of MRL and MRL-E against FF, through the same code."""

import argparse
import statistics

import torch
from torch import Tensor

from benchmarks.turns import Step, ratios, seconds_of_steps, take_turns
from mrl import config
from mrl.config import BackboneConfig, HeadConfig, OptimConfig
from mrl.model import MRLModel, build_model
from mrl.precision import autocast, pick_precision
from mrl.train_loop import NestedObjective
from mrl.train_state import TrainState

D, CLASSES = 2048, 1000
HEADS = {
    "FF": HeadConfig(granularities=[D]),
    "MRL-E": HeadConfig(kind=config.HeadKind["tied"]),
    "MRL": HeadConfig(),
}
WARMUP = 3  # rounds that do not count
LR = 1e-3


def whole_step(args: argparse.Namespace, device: torch.device) -> None:
    precision = pick_precision(args.precision, device)
    batch = make_batch(args, device)
    steps = {name: our_step(head, batch, precision) for name, head in HEADS.items()}
    seconds = take_turns(seconds_of_steps(steps, args.clock, device), args.rounds, WARMUP)
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

"""ResNet-50's step on a GPU against the loop that one would write without this project."""

import argparse
import statistics

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_step import (
    CLASSES,
    HEADS,
    LR,
    WARMUP,
    D,
    make_batch,
    make_model,
    our_step,
)
from benchmarks.turns import Step, ratios, seconds_of_steps, take_turns
from mrl.config import HeadConfig
from mrl.losses import nested_cross_entropy, weighted_sum
from mrl.nesting import log_spaced

WIDTHS = log_spaced(D)
PLAIN = "plain fp16 loop"


def on_gpu(args: argparse.Namespace, device: torch.device) -> None:
    batch = make_batch(args, device)
    steps = {PLAIN: plain_step(batch)}
    for compiled in (False, True) if args.compile else (False,):
        for name, head in HEADS.items():
            label = f"{name}, compiled" if compiled else name
            steps[label] = our_step(head, batch, "bf16", compiled)
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    cases = seconds_of_steps({"peak": lambda: a @ b, **steps}, args.clock, device)
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

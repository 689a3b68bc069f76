"""What a run prints: its resolved settings, a progress bar, a line for each epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mrl.checkpoint import CheckpointError
from mrl.distributed import Ranks
from mrl.model import MRLModel
from mrl.progress import Bar, progress, say
from mrl.running_loss import NonFiniteError

if TYPE_CHECKING:
    from mrl.config import TrainConfig


def explained(error: BaseException, on_memory: str = "") -> str | None:
    """The line for an error that the one who reads it can mend; None for a fault of this code.

    Args:
        on_memory: what to do when memory ran out.
    """
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return f"error: out of memory: {text}{on_memory}"
    known = isinstance(error, ValueError | CheckpointError | NonFiniteError | OSError)
    return f"error: {text}" if known else None


def resolved_values(model: MRLModel, schedule: dict[str, Any]) -> dict[str, Any]:
    """What follows from the config, the data and the backbone: for the console and env.json.

    Args:
        schedule: arguments of :func:`mrl.optim.learning_rate`.
    """
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "embed_dim": model.embed_dim,
        "granularities": list(model.granularities),
        "num_classes": model.head.num_classes,
        "total_steps": schedule["total_steps"],
        "warmup_steps": schedule["warmup_steps"],
        "peak_lr": schedule["peak"],
    }


def announce(
    cfg: TrainConfig,
    resolved: dict[str, Any],
    precision: str,
    device: torch.device,
    ranks: Ranks,
    first_step: int,
) -> None:
    """What is about to be trained, before the first step."""
    embed_dim, widths = resolved["embed_dim"], resolved["granularities"]
    print(
        f"{cfg.name}: {cfg.backbone.name}, {resolved['parameters'] / 1e6:.2f} M parameters, "
        f"embedding width {embed_dim}, {cfg.head.kind.name} head at {widths}\n"
        f"  {resolved['total_steps']} steps of {cfg.optim.batch_size} images, peak learning rate "
        f"{resolved['peak_lr']:.4g} at step {resolved['warmup_steps']}, {precision} on {device} x "
        f"{ranks.world_size}, seed {cfg.seed}, run {cfg.run_dir}"
    )
    if first_step >= resolved["total_steps"]:
        print("  it is finished already")
    elif first_step:
        print(f"  resumes at step {first_step}")
    optim, backbone = cfg.optim, cfg.backbone
    if optim.warmup_epochs >= optim.epochs:
        print(
            f"  note: optim.warmup_epochs={optim.warmup_epochs:g} does not fit into "
            f"{optim.epochs} epoch(s): a third of the run is warm-up"
        )
    if backbone.trainable is not None and backbone.init is None and not backbone.pretrained:
        print(
            "  note: what backbone.trainable does not name stays as it was drawn at random, since "
            "neither backbone.init nor backbone.pretrained says what to start from"
        )
    if len(widths) > 1 and widths[-1] < embed_dim:
        print(
            f"  note: entries beyond {widths[-1]} of the embedding are not trained, since its full "
            f"width {embed_dim} is not among the granularities"
        )


def epoch_line(epoch: int, epochs: int, top1: dict[int, float]) -> str:
    shown = "  ".join(f"{m}: {value:.2f}" for m, value in top1.items())
    return f"epoch {epoch + 1}/{epochs}  held-out top-1 %  {shown}"


def progress_bar(cfg: TrainConfig, ranks: Ranks, total_steps: int, first_step: int) -> Bar:
    widths = cfg.head.granularities or ()
    return progress(
        f"{cfg.name} seed {cfg.seed}" + (f" m={widths[0]}" if len(widths) == 1 else ""),
        total_steps * cfg.optim.batch_size,
        "img",
        done=first_step * cfg.optim.batch_size,
        shown=ranks.is_main,
        leave=True,
    )


@contextmanager
def compiling(shown: bool) -> Iterator[None]:
    """Say how long the first step of a compiled model takes, which is when it is compiled."""
    if shown:
        say("torch.compile: the first step compiles the model, which can take minutes")
    start = time.perf_counter()
    yield
    if shown:
        say(f"torch.compile: done in {time.perf_counter() - start:.0f} s")

"""What a run prints: its resolved settings, a progress bar, a line for each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mrl.distributed import Ranks
from mrl.model import MRLModel

if TYPE_CHECKING:
    from mrl.config import TrainConfig


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
    if len(widths) > 1 and widths[-1] < embed_dim:
        print(
            f"  note: entries beyond {widths[-1]} of the embedding are not trained, since its full "
            f"width {embed_dim} is not among the granularities"
        )


def epoch_line(epoch: int, epochs: int, top1: dict[int, float]) -> str:
    shown = "  ".join(f"{m}: {value:.2f}" for m, value in top1.items())
    return f"epoch {epoch + 1}/{epochs}  held-out top-1 %  {shown}"


def progress_bar(cfg: TrainConfig, ranks: Ranks, total_steps: int, first_step: int) -> tqdm:
    return tqdm(
        total=total_steps * cfg.optim.batch_size,
        initial=first_step * cfg.optim.batch_size,
        unit="img",
        unit_scale=True,
        desc=cfg.name,
        disable=not ranks.is_main,
        mininterval=0.5,
    )

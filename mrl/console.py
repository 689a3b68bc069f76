"""What a run prints: its resolved settings, a progress bar, a line for each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from mrl.distributed import Ranks
from mrl.model import MRLModel

if TYPE_CHECKING:
    from mrl.config import TrainConfig


def announce(
    cfg: TrainConfig,
    model: MRLModel,
    schedule: dict[str, Any],
    precision: str,
    device: torch.device,
    ranks: Ranks,
    first_step: int,
) -> None:
    """What was resolved from the config, before the first step."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{cfg.name}: {cfg.backbone.name}, {millions:.2f} M parameters, embedding width "
        f"{model.embed_dim}, {cfg.head.kind.name} head at {model.granularities}\n"
        f"  {schedule['total_steps']} steps of {cfg.optim.batch_size} images, peak learning rate "
        f"{schedule['peak']:.4g}, {precision} on {device} x {ranks.world_size}, seed {cfg.seed}, "
        f"run {cfg.run_dir}"
    )
    if first_step >= schedule["total_steps"]:
        print("  it is finished already")
    elif first_step:
        print(f"  resumes at step {first_step}")
    if len(model.granularities) > 1 and model.granularities[-1] < model.embed_dim:
        print(
            f"  note: entries beyond {model.granularities[-1]} of the embedding are not trained, "
            f"since its full width {model.embed_dim} is not among the granularities"
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

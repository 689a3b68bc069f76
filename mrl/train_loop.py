"""The training loop: one for MRL, MRL-E and the fixed-feature baselines.

Shapes: N images in this rank's part of a batch, G granularities.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from mrl.checkpoint import CHECKPOINT_NAME, get_rng_state, save_checkpoint, set_rng_state
from mrl.config import TrainConfig, to_dict, to_yaml
from mrl.data import build_loader, load_splits
from mrl.distributed import Ranks, all_reduce_sum, gather_objects
from mrl.model import MRLModel, build_model
from mrl.nesting import check_weights, sample_weights
from mrl.optim import build_optimizer, learning_rate, peak_lr
from mrl.precision import autocast, pick_precision
from mrl.run_dir import open_run_dir
from mrl.running_loss import NonFiniteError, RunningLoss, diverged
from mrl.tracking import RunWriter, environment, per_granularity


class NestedObjective(nn.Module):
    """The loss as a module, because DDP must see the whole forward pass in one call."""

    def __init__(self, model: MRLModel, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(
        self, images: Tensor, labels: Tensor, weights: Sequence[float]
    ) -> tuple[Tensor, Tensor]:
        """The weighted total, and the unweighted losses (G,) without gradient."""
        z = self.model.encode(images)
        total, losses = self.model.head.loss(z, labels, weights, self.label_smoothing)
        return total, torch.stack(list(losses.values())).detach()


def fit(cfg: TrainConfig, ranks: Ranks, device: torch.device) -> Path:
    """Train as ``cfg`` says; returns the checkpoint's path.

    Raises:
        ConfigError: if the run cannot be started or continued as asked.
        NonFiniteError: if a loss or a weight is NaN or infinite; the last good checkpoint stays.
        KeyboardInterrupt: on Ctrl-C, once the step at hand is done and saved.
    """
    state = open_run_dir(cfg)
    torch.manual_seed(cfg.seed)
    train_loader, holdout_loader, data_facts = _load_data(cfg, ranks)
    model = build_model(
        cfg.backbone,
        cfg.head,
        num_classes=len(data_facts["classes"]),
        in_channels=data_facts["in_channels"],
        image_size=cfg.data.image_size,
    )
    model.to(device).to(memory_format=torch.channels_last)
    weights_at = _weights_of_step(cfg, model.granularities)
    optimizer = build_optimizer(model, cfg.optim)
    first_step = 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        set_rng_state(state["rng"][ranks.rank % len(state["rng"])], device)
        first_step = state["step"]
    objective = _distribute(NestedObjective(model, cfg.optim.label_smoothing), cfg, ranks)
    precision = pick_precision(cfg.optim.precision.name, device)
    schedule: dict[str, Any] = {
        "total_steps": cfg.optim.epochs * train_loader.steps,
        "warmup_steps": round(cfg.optim.warmup_epochs * train_loader.steps),
        "peak": peak_lr(cfg.optim.base_lr, cfg.optim.batch_size),
        "schedule": cfg.optim.schedule.name,
    }
    checkpoint = Path(cfg.run_dir) / CHECKPOINT_NAME

    def save(step: int) -> None:
        # A finite loss can be followed by an update that is not: such weights are never saved.
        if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
            raise NonFiniteError(diverged("a weight", step - 1, checkpoint))
        rng = gather_objects(get_rng_state(device))
        if ranks.is_main:
            saved = {"config": to_dict(cfg), "data": data_facts, "step": step, "rng": rng}
            saved |= {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(checkpoint, saved)

    if ranks.is_main:
        _announce(cfg, model, schedule, precision, device, ranks, first_step)
    if first_step >= schedule["total_steps"]:
        return checkpoint

    running = RunningLoss(model.granularities, device, ranks.world_size)
    with (
        _writer(cfg, ranks, device, precision, first_step) as writer,
        _progress(cfg, ranks, schedule["total_steps"], first_step) as bar,
        _interrupt_flag(ranks) as interrupted,
    ):
        for epoch in range(first_step // train_loader.steps, cfg.optim.epochs):
            model.train()
            epoch_start = epoch * train_loader.steps
            start = max(first_step, epoch_start)
            batches = train_loader.batches(epoch, start=start - epoch_start)
            for step, (images, labels) in enumerate(batches, start=start):
                images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
                labels = labels.to(device, non_blocking=True)
                lr = learning_rate(step, **schedule)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                with autocast(precision, device):
                    total, losses = objective(images, labels, weights_at(step))
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                if cfg.optim.clip_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.clip_norm)
                optimizer.step()

                running.add(total.detach(), losses)
                bar.update(cfg.optim.batch_size)
                done = step + 1
                if done % cfg.tracking.log_every == 0 or done % train_loader.steps == 0:
                    metrics = running.close(done, checkpoint)
                    writer.log(done, {"epoch": epoch, "lr": lr, **metrics})
                    bar.set_postfix(loss=f"{metrics['train/total']:.3f}", epoch=epoch + 1)
                if interrupted() and done % train_loader.steps:
                    save(done)
                    raise KeyboardInterrupt
            if holdout_loader is not None:
                top1 = accuracy(model, holdout_loader, precision, device)
                writer.log(done, {"epoch": epoch, **per_granularity("holdout/top1", top1)})
                if ranks.is_main:
                    bar.write(_epoch_line(epoch, cfg.optim.epochs, top1))
            save(done)
            if interrupted() and done < schedule["total_steps"]:
                raise KeyboardInterrupt
    return checkpoint


def accuracy(
    model: MRLModel, loader: Any, precision: str, device: torch.device
) -> dict[int, float]:
    """Top-1 in per cent at every granularity, over all ranks' parts of the data."""
    counts = torch.zeros(len(model.granularities) + 1, dtype=torch.int64, device=device)
    model.eval()
    with torch.inference_mode(), autocast(precision, device):
        for images, labels in loader.batches(0):
            logits = model(images.to(device, memory_format=torch.channels_last))
            labels = labels.to(device)
            right = [(logits_NC.argmax(1) == labels).sum() for logits_NC in logits.values()]
            counts += torch.stack([*right, torch.tensor(len(labels), device=device)])
    *right, seen = all_reduce_sum(counts).tolist()
    return {m: 100 * r / seen for m, r in zip(model.granularities, right, strict=True)}


def _load_data(cfg: TrainConfig, ranks: Ranks) -> tuple[Any, Any, dict[str, Any]]:
    """Loaders of the training and of the held-out images, and what a checkpoint notes of them."""
    if not ranks.is_main:
        torch.distributed.barrier()  # rank 0 fetches the files
    splits = load_splits(cfg.data)
    if ranks.is_main and ranks.world_size > 1:
        torch.distributed.barrier()

    def loader(split: Any, train: bool) -> Any:
        return build_loader(
            split,
            cfg=cfg.data,
            mean=splits.mean,
            std=splits.std,
            batch_size=cfg.optim.batch_size,
            train=train,
            seed=cfg.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )

    holdout_loader = loader(splits.holdout, train=False) if cfg.data.holdout else None
    facts = {"classes": list(splits.classes), "in_channels": splits.in_channels}
    return loader(splits.train, train=True), holdout_loader, facts


def _weights_of_step(cfg: TrainConfig, granularities: list[int]) -> Callable[[int], list[float]]:
    """Step -> loss weights: constant, or drawn anew at every step (head.sampled)."""
    weights = check_weights(cfg.head.weights, granularities)
    if cfg.head.sampled is None:
        return lambda step: weights
    count = cfg.head.sampled
    sample_weights(weights, count, seed=cfg.seed, step=0)  # refuses an impossible number at once
    return lambda step: sample_weights(weights, count, seed=cfg.seed, step=step)


def _distribute(objective: NestedObjective, cfg: TrainConfig, ranks: Ranks) -> nn.Module:
    if ranks.world_size == 1:
        return objective
    # A classifier of weight 0 gets no gradient in that step, on any rank.
    some_unused = cfg.head.sampled is not None or 0.0 in (cfg.head.weights or ())
    return DistributedDataParallel(objective, find_unused_parameters=some_unused)


class _NoWriter:
    """What ranks other than 0 log to."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass


def _writer(
    cfg: TrainConfig, ranks: Ranks, device: torch.device, precision: str, step: int
) -> AbstractContextManager[RunWriter | _NoWriter]:
    if not ranks.is_main:
        return nullcontext(_NoWriter())
    env = environment(device, precision, ranks.world_size)
    return RunWriter(cfg, config=to_dict(cfg), config_yaml=to_yaml(cfg), env=env, step=step)


def _progress(cfg: TrainConfig, ranks: Ranks, total_steps: int, first_step: int) -> tqdm:
    return tqdm(
        total=total_steps * cfg.optim.batch_size,
        initial=first_step * cfg.optim.batch_size,
        unit="img",
        unit_scale=True,
        desc=cfg.name,
        disable=not ranks.is_main,
        mininterval=0.5,
    )


@contextmanager
def _interrupt_flag(ranks: Ranks) -> Iterator[Callable[[], bool]]:
    """Ctrl-C lets the step at hand finish, so that its state is saved; a second one does not.

    Several ranks are interrupted at different steps and could not agree on one to save: they stop
    at once, and the checkpoint of the last epoch remains.
    """
    pressed = False

    def on_interrupt(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed or ranks.world_size > 1:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _announce(
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


def _epoch_line(epoch: int, epochs: int, top1: dict[int, float]) -> str:
    shown = "  ".join(f"{m}: {value:.2f}" for m, value in top1.items())
    return f"epoch {epoch + 1}/{epochs}  held-out top-1 %  {shown}"

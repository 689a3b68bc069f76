"""The training loop: one for MRL, MRL-E and the fixed-feature baselines.

Shapes: N images in this rank's part of a batch, G granularities.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mrl.checkpoint import Checkpoints, get_rng_state, set_rng_state
from mrl.config import ConfigError, TrainConfig, to_dict, to_yaml
from mrl.console import announce, compiling, epoch_line, progress_bar, resolved_values
from mrl.data import build_loader, load_splits
from mrl.data.batches import mix
from mrl.data.workers import WorkerError
from mrl.data_notes import Noted, changes, noted_holdout, notes_of, pick_pixels
from mrl.distributed import Ranks, all_reduce_sum, from_rank_0, gather_objects
from mrl.initial_weights import load_backbone_weights
from mrl.mixing import build_mix
from mrl.model import MRLModel, model_for
from mrl.nesting import check_weights, sample_weights
from mrl.optim import fitting_warmup, freeze, learning_rate, peak_lr, train_mode
from mrl.precision import autocast, pick_precision
from mrl.progress import say
from mrl.run_dir import held_run_dir, open_run_dir, refuse_changes
from mrl.running_loss import NonFiniteError, RunningLoss, diverged
from mrl.sharding import shard
from mrl.stopping import stop_request
from mrl.tracking import RunWriter, environment, per_granularity
from mrl.train_state import TrainState

FINISHED_NAME = "finished"  # an empty file: a job script need not ask for more time


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
        KeyboardInterrupt: on Ctrl-C, and
        StoppedError: on a scheduler's signal, both once the step at hand is done and saved.
        WorkerError: if a process that prepares batches is killed; one rank alone has saved.
    """
    with held_run_dir(cfg, ranks):
        return _fit(cfg, ranks, device)


def _fit(cfg: TrainConfig, ranks: Ranks, device: torch.device) -> Path:
    saved = open_run_dir(cfg)
    torch.manual_seed(cfg.seed)
    train_loader, holdout_loader, data_facts = _load_data(
        cfg, ranks, None if saved is None else saved["data"]
    )
    model = _build_model(cfg, data_facts, from_scratch=saved is None).to(device)
    precision = pick_precision(cfg.optim.precision.name, device)
    amp = partial(autocast, precision, device)
    if cfg.fsdp:
        shard(model, cfg, ranks, device)
    state = TrainState(model, cfg.optim, precision, device, sharded=cfg.fsdp)
    checkpoints = Checkpoints(Path(cfg.run_dir), cfg.save.keep, saved)
    first_step = 0
    if saved is not None:
        state.load(saved)
        first_step = saved["step"]
        if ranks.is_main:
            checkpoints.name_again(saved)
    _set_own_draws(cfg.seed, ranks, saved, device)
    steps = train_loader.steps  # of an epoch
    schedule = _schedule(cfg, steps)
    resolved = resolved_values(model, schedule) | {"pixels": data_facts["pixels"]}
    if ranks.is_main:
        announce(cfg, resolved, precision, device, ranks, first_step)
    finished = Path(cfg.run_dir) / FINISHED_NAME
    if first_step >= schedule["total_steps"]:
        finished.touch()  # it may have been killed between the last checkpoint and this
        return checkpoints.newest
    finished.unlink(missing_ok=True)  # of the same run with fewer epochs (force=true)

    objective = _distribute(NestedObjective(model, cfg.optim.label_smoothing), cfg, ranks, device)
    weights_at = _weights_of_step(cfg, model.granularities)
    blend = build_mix(cfg.optim, num_classes=model.head.num_classes, seed=cfg.seed, rank=ranks.rank)
    num_parts = cfg.optim.accumulate
    running = RunningLoss(model.granularities, device, ranks.world_size, cfg.optim.batch_size)

    def save(step: int, top1: float | None = None) -> None:
        # A finite loss can be followed by an update that is not: such weights are never saved.
        if not state.is_finite():
            raise NonFiniteError(diverged("a weight or statistic", step - 1, checkpoints.newest))
        rng = gather_objects(get_rng_state(device))
        facts = {"config": to_dict(cfg), "data": data_facts, "step": step, "rng": rng}
        whole = facts | state.to_dict()
        if ranks.is_main:
            checkpoints.save(whole, top1 if cfg.save.best else None)

    done = first_step

    @contextmanager
    def saved_if_a_worker_dies() -> Iterator[None]:
        """It comes to light between steps. Other ranks, in the next already, could not save."""
        try:
            yield
        except WorkerError as error:
            if ranks.world_size > 1 or done == first_step:
                raise
            save(done)
            raise WorkerError(f"{error}. Step {done} is saved") from error

    with (
        _writer(cfg, ranks, device, precision, resolved, first_step) as writer,
        progress_bar(cfg, ranks, schedule["total_steps"], first_step) as bar,
        stop_request(ranks) as stop,
        saved_if_a_worker_dies(),
    ):
        for epoch in range(first_step // steps, cfg.optim.epochs):
            train_mode(model)
            start = max(first_step, epoch * steps)
            batches = running.fetched(train_loader.batches(epoch, start=start - epoch * steps))
            for step, (images, labels) in enumerate(batches, start=start):
                images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
                images, labels = blend(images, labels.to(device, non_blocking=True), step)
                with compiling(cfg.compile and ranks.is_main and step == first_step):
                    total, losses = _backward(
                        state, objective, images, labels, weights_at(step), num_parts, amp
                    )
                lr = learning_rate(step, **schedule)
                state.update(lr)

                running.add(total, losses)
                bar.update(cfg.optim.batch_size)
                done = step + 1
                epoch_ends = done % steps == 0
                if done % cfg.tracking.log_every == 0 or epoch_ends:
                    metrics = running.close(done, checkpoints.newest)
                    writer.log(done, {"epoch": epoch, "lr": lr, **metrics})
                    loss = f"{metrics['train/total']:.3f}"
                    bar.set_postfix(step=done, epoch=epoch + 1, loss=loss)
                stopped_by = stop.agreed()
                top1 = {}
                if epoch_ends and holdout_loader is not None:
                    top1 = accuracy(state.evaluated, holdout_loader, amp, device)
                    writer.log(done, {"epoch": epoch, **per_granularity("holdout/top1", top1)})
                    if ranks.is_main:
                        say(epoch_line(epoch, cfg.optim.epochs, top1))
                if epoch_ends or stopped_by or (cfg.save.every and done % cfg.save.every == 0):
                    save(done, top1.get(model.granularities[-1]))
                if stopped_by and done < schedule["total_steps"]:
                    stop.leave(stopped_by, done)
    finished.touch()
    return checkpoints.newest


def _backward(
    state: TrainState,
    objective: nn.Module,
    images: Tensor,
    labels: Tensor,
    weights: Sequence[float],
    num_parts: int,
    amp: Callable[[], torch.autocast],
) -> tuple[Tensor, Tensor]:
    """Add one step's gradients, in parts to save memory; returns (total, losses (G,)), detached.

    DDP exchanges the gradients once, with the last part.
    """
    batch = list(zip(images.chunk(num_parts), labels.chunk(num_parts), strict=True))
    ddp = objective if isinstance(objective, DistributedDataParallel) else None
    sums = []
    for i, (part, part_labels) in enumerate(batch, start=1):
        share = len(part) / len(images)
        with ddp.no_sync() if ddp and i < len(batch) else nullcontext():
            with amp():
                total, losses = objective(part, part_labels, weights)
            state.backward(share * total)
        sums.append(share * torch.cat([total.detach()[None], losses]))
    total_and_losses = torch.stack(sums).sum(0)
    return total_and_losses[0], total_and_losses[1:]


def accuracy(
    model: MRLModel, loader: Any, amp: Callable[[], torch.autocast], device: torch.device
) -> dict[int, float]:
    """Top-1 in per cent at every granularity, over all ranks' parts of the data."""
    counts = torch.zeros(len(model.granularities) + 1, dtype=torch.int64, device=device)
    model.eval()
    with torch.inference_mode(), amp():
        for images, labels in loader.batches(0):
            logits = model(images.to(device, memory_format=torch.channels_last))
            labels = labels.to(device)
            right = [(logits_NC.argmax(1) == labels).sum() for logits_NC in logits.values()]
            counts += torch.stack([*right, torch.tensor(len(labels), device=device)])
    *right, seen = all_reduce_sum(counts).tolist()
    return {m: 100 * r / seen for m, r in zip(model.granularities, right, strict=True)}


def _build_model(cfg: TrainConfig, data_facts: dict[str, Any], *, from_scratch: bool) -> MRLModel:
    """The model to train; its first weights matter only where no checkpoint will replace them."""
    if not from_scratch:
        cfg = replace(cfg, backbone=replace(cfg.backbone, pretrained=False, init=None))
    model = model_for(cfg, data_facts)
    if cfg.backbone.init is not None:
        load_backbone_weights(model, cfg.backbone.init)
    if cfg.backbone.trainable is not None:
        freeze(model.backbone, cfg.backbone.trainable)
    return model.to(memory_format=torch.channels_last)


def _set_own_draws(
    seed: int, ranks: Ranks, saved: dict[str, Any] | None, device: torch.device
) -> None:
    """Let dropout and stochastic depth go on where they were, or begin, unlike on other ranks.

    The global generators are alike on all ranks so far: models begin with the same weights.
    """
    if saved is not None and ranks.rank < len(saved["rng"]):
        set_rng_state(saved["rng"][ranks.rank], device)
    elif ranks.rank > 0:  # rank 0 goes on as a process alone would
        step = 0 if saved is None else saved["step"]
        torch.manual_seed(mix(seed, ranks.rank, step))


def _schedule(cfg: TrainConfig, steps: int) -> dict[str, Any]:
    """The arguments of :func:`mrl.optim.learning_rate` besides the step."""
    return {
        "total_steps": cfg.optim.epochs * steps,
        "warmup_steps": round(fitting_warmup(cfg.optim.warmup_epochs, cfg.optim.epochs) * steps),
        "peak": peak_lr(cfg.optim.base_lr, cfg.optim.batch_size),
        "schedule": cfg.optim.schedule.name,
    }


def _load_data(
    cfg: TrainConfig, ranks: Ranks, noted: Noted | None
) -> tuple[Any, Any, dict[str, Any]]:
    """Loaders of the training and of the held-out images, and what a checkpoint notes of them."""
    if not ranks.is_main:
        torch.distributed.barrier()  # rank 0 fetches the files
    splits = load_splits(cfg.data, noted_holdout(noted, cfg.data.holdout))
    if ranks.is_main and ranks.world_size > 1:
        torch.distributed.barrier()
    pixels, word = pick_pixels(cfg, splits, noted)

    def loader(split: Any, train: bool) -> Any:
        return build_loader(
            split,
            cfg=cfg.data,
            pixels=pixels,
            batch_size=cfg.optim.batch_size,
            train=train,
            seed=cfg.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )

    facts = from_rank_0(lambda: notes_of(splits, pixels), ranks)
    if noted is not None:
        refuse_changes(cfg, changes(noted, facts, splits.lost))
    if ranks.is_main and pixels != splits.pixels:
        print(f"pixels: {pixels} ({word})")
    holdout_loader = loader(splits.holdout, train=False) if cfg.data.holdout else None
    return loader(splits.train, train=True), holdout_loader, facts


def _weights_of_step(cfg: TrainConfig, granularities: list[int]) -> Callable[[int], list[float]]:
    """Step -> loss weights: constant, or drawn anew at every step (head.sampled)."""
    weights = check_weights(cfg.head.weights, granularities)
    if cfg.head.sampled is None:
        return lambda step: weights
    count = cfg.head.sampled
    sample_weights(weights, count, seed=cfg.seed, step=0)  # refuses an impossible number at once
    return lambda step: sample_weights(weights, count, seed=cfg.seed, step=step)


def _distribute(
    objective: nn.Module, cfg: TrainConfig, ranks: Ranks, device: torch.device
) -> nn.Module:
    """The objective as it runs: compiled if asked for, its gradients averaged over the ranks."""
    if cfg.sync_bn:
        if device.type != "cuda":
            raise ConfigError(f"sync_bn=true works on GPUs only, not on {device}")
        objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
    if cfg.compile:
        objective.compile()
    if ranks.world_size == 1 or cfg.fsdp:
        return objective
    # A classifier of weight 0 gets no gradient in that step, on any rank.
    some_unused = cfg.head.sampled is not None or 0.0 in (cfg.head.weights or ())
    return DistributedDataParallel(objective, find_unused_parameters=some_unused)


class _NoWriter:
    """What ranks other than 0 log to."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass


def _writer(
    cfg: TrainConfig,
    ranks: Ranks,
    device: torch.device,
    precision: str,
    resolved: dict[str, Any],
    step: int,
) -> AbstractContextManager[RunWriter | _NoWriter]:
    if not ranks.is_main:
        return nullcontext(_NoWriter())
    env = environment(device, precision, ranks.world_size) | {"resolved": resolved}
    return RunWriter(cfg, config=to_dict(cfg), config_yaml=to_yaml(cfg), env=env, step=step)

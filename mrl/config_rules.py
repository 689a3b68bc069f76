"""Rules over the values of a configuration, checked before any work."""

from mrl.config import ConfigError, EvalConfig, Split, TrainConfig


def validate(cfg: TrainConfig) -> None:
    """Check single values, and keys against each other.

    Raises:
        ConfigError: naming every key at fault, its value and what it should be.
    """
    optim, data = cfg.optim, cfg.data
    at_least = [
        ("seed", cfg.seed, 0),
        ("data.image_size", data.image_size, 1),
        ("data.pad", data.pad, 0),
        ("data.workers", data.workers, 0),
        ("data.holdout", data.holdout, 0),
        ("optim.epochs", optim.epochs, 1),
        ("optim.batch_size", optim.batch_size, 1),
        ("optim.weight_decay", optim.weight_decay, 0),
        ("optim.accumulate", optim.accumulate, 1),
        ("optim.mixup", optim.mixup, 0),
        ("optim.cutmix", optim.cutmix, 0),
        ("save.every", 1 if cfg.save.every is None else cfg.save.every, 1),
        ("save.keep", cfg.save.keep, 1),
        ("tracking.log_every", cfg.tracking.log_every, 1),
    ]
    fractions = [
        ("optim.momentum", optim.momentum),
        ("optim.label_smoothing", optim.label_smoothing),
        ("optim.ema", optim.ema or 0.0),
        ("backbone.drop_path", cfg.backbone.drop_path),
        *((f"optim.betas[{i}]", beta) for i, beta in enumerate(optim.betas)),
    ]
    broken = [f"{key} must be at least {low}, got {x}" for key, x, low in at_least if not x >= low]
    broken += [f"{key} must lie in [0, 1), got {x}" for key, x in fractions if not 0 <= x < 1]
    if not 0 < optim.base_lr < float("inf"):
        broken.append(f"optim.base_lr must be positive and finite, got {optim.base_lr}")
    if not 0 <= optim.warmup_epochs < optim.epochs:
        broken.append(
            f"optim.warmup_epochs must lie in [0, optim.epochs={optim.epochs}), "
            f"got {optim.warmup_epochs}"
        )
    if optim.clip_norm is not None and not optim.clip_norm > 0:
        broken.append(f"optim.clip_norm must be positive or null, got {optim.clip_norm}")
    if cfg.save.best and not data.holdout:
        broken.append("save.best needs images to choose by: set data.holdout")
    if len(optim.betas) != 2:
        broken.append(f"optim.betas must be two numbers, got {optim.betas}")
    if broken:
        raise ConfigError("; ".join(broken))


def run_dirs(cfg: EvalConfig) -> list[str]:
    """The run directories, or the one checkpoint, to evaluate.

    Raises:
        ConfigError: unless exactly one of ``run`` and ``ckpt`` is given, and for keys that do not
            go together.
    """
    if (cfg.run is None) == (cfg.ckpt is None):
        raise ConfigError("give one of run=DIRECTORY and ckpt=FILE: which model is to be judged?")
    if (cfg.ckpt is None) != (cfg.out is None):
        raise ConfigError(
            "out=FOLDER takes the rows and embeddings of a ckpt and is needed with it; those of a "
            f"run go to its directory: got ckpt={cfg.ckpt}, out={cfg.out}"
        )
    if cfg.batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {cfg.batch_size}")
    if cfg.data is not None and cfg.data_root is not None:
        raise ConfigError("data.root says where the data set is: data_root is for the run's own")
    if cfg.queries is not None and cfg.split is not Split.test:
        raise ConfigError(f"split={cfg.split.name} is of the data set; queries have no splits")
    runs = [cfg.run or cfg.ckpt] if isinstance(cfg.run, str | None) else cfg.run
    if not isinstance(runs, list) or not runs or not all(isinstance(run, str) for run in runs):
        raise ConfigError(f"run must be a run directory or a list of them, got {cfg.run!r}")
    return runs

"""The typed schema of every configuration key, and the one place where Hydra's config becomes ours.

Hydra composes YAML files against these dataclasses; :func:`parse` turns the result into plain
objects once, and nothing below it sees OmegaConf.  A default stands either here (neutral values) or
in ``configs/`` (choices), never in both: ``MISSING`` marks what the YAML files must say.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Enum members are matched by name, hence the lower case.
DatasetName = Enum(
    "DatasetName", ["fashion_mnist", "cifar10", "cifar100", "imagefolder", "synthetic"]
)
HeadKind = Enum("HeadKind", ["nested", "tied"])
Spacing = Enum("Spacing", ["log", "uniform"])
Stem = Enum("Stem", ["imagenet", "small"])
OptimizerName = Enum("OptimizerName", ["sgd", "adamw"])
Schedule = Enum("Schedule", ["linear", "cosine", "constant"])
Precision = Enum("Precision", ["auto", "fp32", "bf16"])
WandbMode = Enum("WandbMode", ["online", "offline", "disabled"])
TrackingName = Enum("TrackingName", ["none", "wandb", "tensorboard"])
Split = Enum("Split", ["holdout", "test"])


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and the values."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    name: DatasetName = MISSING
    root: str = MISSING  # folder that holds, or gets, the files
    image_size: int = MISSING  # pixels, square
    holdout: int = MISSING  # images of train held out for choosing; never trained on
    flip: bool = MISSING  # mirror left-right with probability 1/2
    pad: int = 0  # random shift by up to this many pixels (data sets kept in memory)
    workers: int = 0  # loader processes of each rank (imagefolder)
    download: bool = True  # fetch missing files; false: fail instead
    num_classes: int | None = None  # synthetic only
    num_images: int | None = None  # synthetic only: size of train


@dataclass(kw_only=True, slots=True)
class BackboneConfig:
    name: str = MISSING  # "resnet_small", or any timm model
    widths: list[int] | None = None  # resnet_small: channels of each stage; the last is embed_dim
    blocks: list[int] | None = None  # resnet_small: residual blocks in each stage
    stem: Stem = Stem.imagenet  # small: timm's first downsamplings removed, for 28-64 px images
    pretrained: bool = False
    drop_path: float = 0.0  # stochastic depth (timm models that have it)


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    kind: HeadKind = HeadKind.nested
    granularities: list[int] | None = None  # null: made from the embedding width by `spacing`
    spacing: Spacing = Spacing.log
    smallest: int = 8  # where log and uniform spacing start
    count: int = 8  # number of widths of uniform spacing
    weights: list[float] | None = None  # c_m; null: 1 each, the paper's sum
    sampled: int | None = (
        None  # granularities trained per step, the full width always in; null: all
    )
    bias: bool = True


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    name: OptimizerName = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING  # global: over all ranks
    base_lr: float = MISSING  # per 256 images: lr = base_lr * batch_size / 256
    momentum: float = 0.9  # sgd, Nesterov
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # adamw
    weight_decay: float = MISSING  # not on norms' parameters and biases
    label_smoothing: float = 0.0
    schedule: Schedule = MISSING
    warmup_epochs: float = 0.0  # linear from 0 to lr; linear and cosine then fall to 0
    clip_norm: float | None = None  # largest gradient norm
    precision: Precision = Precision.auto  # auto: bf16 where the hardware computes in it


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    name: TrackingName = TrackingName.none
    project: str = "mrl"  # wandb
    mode: WandbMode = WandbMode.online
    log_every: int = 50  # steps


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    name: str = MISSING  # of the experiment
    run_dir: str = MISSING
    seed: int = 0
    resume: bool = False  # go on with the run in run_dir, if there is one
    device: str = "auto"  # auto: a GPU if there is one
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(kw_only=True, slots=True)
class ClassifyConfig:
    """Nothing to choose."""


@dataclass(kw_only=True, slots=True)
class KnnConfig:
    k: list[int] = MISSING


@dataclass(kw_only=True, slots=True)
class InterpolationConfig:
    widths: list[int] | None = None  # null: midway, on a log scale, between the trained ones


@dataclass(kw_only=True, slots=True)
class EvalsConfig:
    """One section for each evaluator asked for."""

    classify: ClassifyConfig | None = None
    knn: KnnConfig | None = None
    interpolation: InterpolationConfig | None = None


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    run: Any = MISSING  # a run directory, or a list of them
    # OmegaConf has no `str | list[str]`: run_dirs() checks the type.
    split: Split = Split.test
    batch_size: int = 500  # images encoded at once; no result depends on it
    device: str = "auto"
    data_root: str | None = None  # null: the folder that the run was trained from
    evals: EvalsConfig = field(default_factory=EvalsConfig)


def register() -> None:
    """Put the schemas where the defaults lists of ``configs/*.yaml`` find them."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)


def parse(composed: DictConfig | ListConfig) -> Any:
    """The composed config as the plain dataclass of its schema.

    Raises:
        ConfigError: for a key that the schema lacks (``+key=`` gets past Hydra's own check), a
            value of another type, or a value that no YAML file and no override gave.
    """
    try:
        missing = OmegaConf.missing_keys(composed)
        if missing:
            raise ConfigError(f"no value for {', '.join(sorted(missing))}: give one, as key=value")
        return OmegaConf.to_object(composed)
    except (OmegaConfBaseException, TypeError, AttributeError) as error:
        raise ConfigError(f"unusable configuration: {error}") from error


def run_dirs(cfg: EvalConfig) -> list[str]:
    """The run directories to evaluate.

    Raises:
        ConfigError: if ``run`` is no path and no list of paths, or batch_size is below 1.
    """
    runs = [cfg.run] if isinstance(cfg.run, str) else cfg.run
    if not isinstance(runs, list) or not runs or not all(isinstance(run, str) for run in runs):
        raise ConfigError(f"run must be a run directory or a list of them, got {cfg.run!r}")
    if cfg.batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {cfg.batch_size}")
    return runs


def to_dict(cfg: TrainConfig | EvalConfig) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers: for YAML, checkpoints and dashboards."""
    return _plain(asdict(cfg))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """The :class:`TrainConfig` that :func:`to_dict` wrote.

    Raises:
        ConfigError: for keys or values that this version's schema does not have.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), dict(values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"the stored configuration does not fit this version: {error}") from error
    return parse(merged)


def to_yaml(cfg: TrainConfig | EvalConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(to_dict(cfg)))


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """``"optim.epochs: 3 -> 4"`` for every key at which two configs differ."""
    if is_dataclass(old) and is_dataclass(new):
        return [
            line
            for f in fields(old)
            for line in differences(
                getattr(old, f.name), getattr(new, f.name), f"{key}.{f.name}".lstrip(".")
            )
        ]
    return [] if old == new else [f"{key}: {_plain(old)} -> {_plain(new)}"]


def validate(cfg: TrainConfig) -> None:
    """Rules over single values and between keys, before any work.

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
        ("tracking.log_every", cfg.tracking.log_every, 1),
    ]
    fractions = [
        ("optim.momentum", optim.momentum),
        ("optim.label_smoothing", optim.label_smoothing),
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
    if len(optim.betas) != 2:
        broken.append(f"optim.betas must be two numbers, got {optim.betas}")
    if broken:
        raise ConfigError("; ".join(broken))

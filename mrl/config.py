"""The typed schema of every configuration key, and the one place where Hydra's config becomes ours.

Hydra composes YAML files against these dataclasses; :func:`parse` turns the result into plain
objects once, and nothing below it sees OmegaConf.  A default stands either here (neutral values) or
in ``configs/`` (choices), never in both: ``MISSING`` marks what the YAML files must say.  What only
the command line can say, an experiment marks as ``key: "${required:WHAT IT IS}"``: OmegaConf would
drop a ``???`` in favour of the schema's default.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mrl.command_line import without_references

# Enum members are matched by name, hence the lower case.
DatasetName = Enum(
    "DatasetName", ["fashion_mnist", "cifar10", "cifar100", "imagefolder", "synthetic"]
)
HeadKind = Enum("HeadKind", ["nested", "tied"])
Spacing = Enum("Spacing", ["log", "uniform"])
LoaderName = Enum("LoaderName", ["torch", "ffcv"])
OnCorrupt = Enum("OnCorrupt", ["fatal", "skip"])
Stem = Enum("Stem", ["imagenet", "small"])
OptimizerName = Enum("OptimizerName", ["sgd", "adamw"])
Schedule = Enum("Schedule", ["linear", "cosine", "constant"])
Precision = Enum("Precision", ["auto", "fp32", "bf16", "fp16"])
WandbMode = Enum("WandbMode", ["online", "offline", "disabled"])
TrackingName = Enum("TrackingName", ["none", "wandb", "tensorboard"])
Split = Enum("Split", ["holdout", "test"])
FeatureType = Enum("FeatureType", ["float32", "float16"])


_REQUIRED = re.compile(r"\$\{required:(.*)\}")


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
    workers: int = 0  # loader processes (ffcv: threads) of each rank (imagefolder)
    loader: LoaderName = LoaderName.torch  # ffcv reads ROOT/train.beton and ROOT/val.beton
    on_corrupt: OnCorrupt = OnCorrupt.fatal  # what to do with an image that cannot be decoded
    train_sizes: list[int] | None = None  # progressive resizing: pixels at the start and the end
    ramp_epochs: list[int] | None = None  # the epochs between which train_sizes are gone through
    classes: str | None = None  # text file: folders to use as classes, one a line (imagefolder)
    rand_augment: str | None = None  # timm's notation, such as rand-m9-mstd0.5-inc1 (imagefolder)
    os_cache: bool = True  # ffcv: whole file in the page cache; false: read as needed
    # Null: as the weights were trained that a run starts from, else those of the data set.
    mean: list[float] | None = None  # of each channel, pixels scaled to 0..1
    std: list[float] | None = None
    crop_ratio: float | None = None  # evaluation's square, of the shorter side (imagefolder)
    interpolation: str | None = None  # of pictures to image_size: bilinear, bicubic (imagefolder)
    quasi_random: bool = False  # ffcv: order for files larger than memory (one process only)
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
    init: str | None = None  # checkpoint or run directory whose backbone to start from
    trainable: list[str] | None = None  # modules that are trained, such as layer4.2; null: all
    drop_path: float = 0.0  # stochastic depth (timm models that have it)
    blur_pool: bool = False  # low-pass filter in front of strided convolutions (Zhang 2019)


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    kind: HeadKind = HeadKind.nested
    granularities: list[int] | None = None  # null: made from the embedding width by `spacing`
    spacing: Spacing = Spacing.log
    smallest: int = 8  # where log and uniform spacing start
    count: int = 8  # number of widths of uniform spacing
    weights: list[float] | None = None  # c_m; null: 1 each, the paper's sum
    sampled: int | None = None  # granularities trained per step, with the widest; null: all
    bias: bool = True


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    name: OptimizerName = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING  # global: over all ranks
    base_lr: float = MISSING  # per 256 images: lr = base_lr * batch_size / 256
    momentum: float = 0.9  # sgd
    nesterov: bool = True  # sgd
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # adamw
    weight_decay: float = MISSING  # not on norms' parameters and biases
    label_smoothing: float = 0.0
    schedule: Schedule = MISSING
    warmup_epochs: float = 0.0  # linear from 0 to lr; linear and cosine then fall to 0
    clip_norm: float | None = None  # largest gradient norm
    accumulate: int = 1  # parts that each rank works its batch through in, to need less memory
    ema: float | None = None  # decay of the weights' running average, which is evaluated; warmed up
    mixup: float = 0.0  # alpha: blend pairs of images and their labels (Zhang et al. 2018)
    cutmix: float = 0.0  # alpha: paste a box of another image (Yun et al. 2019)
    precision: Precision = Precision.auto  # auto: bf16 where the hardware computes in it


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    name: TrackingName = TrackingName.none
    project: str = "mrl"  # wandb
    mode: WandbMode = WandbMode.online
    log_every: int = 50  # steps


@dataclass(kw_only=True, slots=True)
class SaveConfig:
    every: int | None = None  # steps between checkpoints; null: at the end of each epoch only
    keep: int = 1  # newest checkpoints kept
    best: bool = False  # also the one with the best held-out top-1 at the largest granularity


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    name: str = MISSING  # of the experiment
    run_dir: str = MISSING
    seed: int = 0
    resume: bool = False  # go on with the run in run_dir, if there is one
    force: bool = False  # go on with it although the config differs
    device: str = "auto"  # auto: a GPU if there is one
    compile: bool = False  # torch.compile
    fsdp: bool = False  # shard weights and optimizer over the ranks, for large transformers
    sync_bn: bool = False  # batch norms take their statistics over all ranks (GPUs)
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    save: SaveConfig = field(default_factory=SaveConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(kw_only=True, slots=True)
class EvaluatorConfig:
    asked: bool = False  # set by configs/evals/NAME.yaml


@dataclass(kw_only=True, slots=True)
class ClassifyConfig(EvaluatorConfig):
    """Nothing to choose."""


@dataclass(kw_only=True, slots=True)
class KnnConfig(EvaluatorConfig):
    k: list[int] | None = None  # null: 1 and 5, as far as there are so many neighbours


@dataclass(kw_only=True, slots=True)
class InterpolationConfig(EvaluatorConfig):
    widths: Any = None  # a list; "all": 1..D; null: midway, on a log scale, between the trained
    # OmegaConf has no `list[int] | str`: check_evals() checks the type.


@dataclass(kw_only=True, slots=True)
class FunnelConfig:
    """The best ``shortlists[i]`` items by width ``dims[i]`` are ranked again by ``dims[i + 1]``."""

    dims: list[int] = MISSING
    shortlists: list[int] = MISSING


@dataclass(kw_only=True, slots=True)
class RetrievalConfig(EvaluatorConfig):
    shortlist: int = MISSING  # K: items that the smaller of two widths hands to the larger
    ks: list[int] = MISSING  # lengths at which the lists are judged, at most K and the bank
    funnels: list[FunnelConfig] | None = None  # null: those of the paper that the widths allow
    timed_queries: int = 1000  # asked at once to measure ms/query; 0: not measured


@dataclass(kw_only=True, slots=True)
class TruncationConfig(EvaluatorConfig):
    # Neighbours at full width that are looked for at the others; null: 10, or as many as there are.
    k: int | None = None


@dataclass(kw_only=True, slots=True)
class EvalsConfig:
    """A section for each evaluator; of those that nobody asks for, parse() makes None.

    (Not before: Hydra cannot set keys inside None.)
    """

    # Set by configs/evals/default.yaml: nobody named these, and what does not apply is left out.
    by_default: bool = False
    classify: ClassifyConfig | None = field(default_factory=ClassifyConfig)
    knn: KnnConfig | None = field(default_factory=KnnConfig)
    interpolation: InterpolationConfig | None = field(default_factory=InterpolationConfig)
    retrieval: RetrievalConfig | None = field(default_factory=RetrievalConfig)
    truncation: TruncationConfig | None = field(default_factory=TruncationConfig)


@dataclass(kw_only=True, slots=True)
class QueriesConfig:
    """Images to judge that come as ROOT/CLASS/IMAGES, such as the robustness sets of ImageNet."""

    name: str = MISSING  # as the rows call the data set
    root: str = MISSING
    classes_map: str | None = None  # JSON file: folder name -> names of the classes that it means


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    # A run directory, or a list of them. OmegaConf has no `str | list[str]`: run_dirs() checks it.
    run: Any = field(default=None, metadata={"text": True})  # see command_line.text_keys()
    ckpt: str | None = None  # instead of run: a checkpoint, of ours or the authors'
    out: str | None = None  # with ckpt or embeddings: the folder of the rows
    # Instead of a model: what another one made of the items of a bank, as .npy or .parquet.
    embeddings: str | None = None
    labels: str | None = None  # of the bank; null: those in the .parquet, if there are any
    query_embeddings: str | None = None  # null: the bank's items, each sought among the others
    query_labels: str | None = None
    num_queries: int | None = None  # so many of the bank's items, drawn by `seed`; null: all
    seed: int = 0
    widths: list[int] | None = None  # prefixes to judge; null: halvings of the full width
    name: str | None = None  # as rows call these embeddings; null: the name of the file
    dataset: str = "embeddings"  # as rows call what was embedded
    split: Split = Split.test
    batch_size: int = 500  # images that each process encodes at once; no result depends on it
    # float16: embeddings take half the disk and memory, and evaluators see them rounded to it.
    feature_type: FeatureType = FeatureType.float32
    device: str = "auto"
    data_root: str | None = None  # null: the folder that the run was trained from
    # parse() makes None of the next two where they have no name; Hydra cannot set keys inside None.
    data: DataConfig | None = field(default_factory=DataConfig)  # None: that of the checkpoint
    queries: QueriesConfig | None = field(default_factory=QueriesConfig)  # None: data's split
    evals: EvalsConfig = field(default_factory=EvalsConfig)


def register() -> None:
    """Put the schemas where the defaults lists of ``configs/*.yaml`` find them."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
    OmegaConf.register_new_resolver("required", _needed, replace=True)  # for --cfg job --resolve


def _needed(what: str) -> None:
    raise ConfigError(f"no value is given for {what}")


def parse(composed: DictConfig | ListConfig) -> Any:
    """The composed config as the plain dataclass of its schema.

    Raises:
        ConfigError: for a key that the schema lacks (``+key=`` gets past Hydra's own check), a
            value of another type, or a value that no YAML file and no override gave.
    """
    try:
        if OmegaConf.get_type(composed) is EvalConfig:
            _drop_unnamed(composed, "data", DataConfig)
            _drop_unnamed(composed, "queries", QueriesConfig)
            _drop_unasked(composed)
        if missing := sorted(_unfilled(OmegaConf.to_container(composed))):
            raise ConfigError(f"no value for {', '.join(missing)}: give one, as key=value")
        return OmegaConf.to_object(composed)
    except (OmegaConfBaseException, TypeError, AttributeError) as error:
        raise ConfigError(f"unusable configuration: {_one_line(error)}") from error


def _unfilled(value: Any, key: str = "") -> Iterator[str]:
    """Each key that is MISSING or ``${required:...}``: ``"backbone.init (a checkpoint)"``."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _unfilled(item, f"{key}.{name}".lstrip("."))
    elif value == MISSING:
        yield key
    elif isinstance(value, str) and (found := _REQUIRED.fullmatch(value)):
        yield f"{key} ({found[1]})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _drop_unnamed(composed: Any, section: str, schema: type) -> None:
    """Set a section to None that nobody chose; refuse one that was given keys but no name."""
    if not OmegaConf.is_missing(composed[section], "name"):
        return
    if composed[section] != OmegaConf.structured(schema):
        raise ConfigError(
            f"{section} has keys but no name: choose one of configs/{section}, as {section}=NAME"
            + (" (data_root=FOLDER says where the run's own data are)" * (section == "data"))
        )
    composed[section] = None


def _drop_unasked(composed: Any) -> None:
    """Set the evaluators' sections to None that nobody asked for; keys of one's own ask for it.

    Embeddings of a model elsewhere were perhaps not made to be cut: by default, see what it costs.
    """
    evals = composed.evals
    sections = {f.name: f.default_factory for f in fields(EvalsConfig) if f.name != "by_default"}
    for name, schema in sections.items():
        section = evals[name]
        if section is None or section.asked:
            continue
        if section == OmegaConf.structured(schema):
            by_default = evals.by_default and composed.embeddings is not None
            if not (by_default and name == "truncation"):
                evals[name] = None
        elif missing := OmegaConf.missing_keys(section):
            raise ConfigError(
                f"no value for {', '.join(sorted(missing))}: give one, or ask for {name} by name, "
                f"as in 'evals=[...,{name}]'"
            )


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
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), _literal(values))
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"the stored configuration does not fit this version: {_one_line(error)}"
        ) from error
    return parse(merged)


def _literal(value: Any) -> Any:
    """With ``${`` escaped: what a file of somebody else's stores reads no environment here."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return without_references(value) if isinstance(value, str) else value


def to_yaml(cfg: TrainConfig | EvalConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_literal(to_dict(cfg))))


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

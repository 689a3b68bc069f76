"""Rules over the values of a configuration, checked before any work."""

from collections.abc import Iterator
from itertools import pairwise

from mrl.config import ConfigError, EvalConfig, EvalsConfig, RetrievalConfig, Split, TrainConfig

MOST = 10**9  # of whatever is counted or scaled: typing errors lie beyond
# Where it is less, or more: pixels that a network can be made for, processes that a machine can
# start, and seeds that PyTorch's generators take.
MOST_OF = {"data.image_size": 8192, "data.train_sizes": 8192, "data.workers": 1024}
MOST_OF |= {"backbone.blocks": 1000, "seed": 2**63 - 1}
SHORT_RUN = 10  # epochs


def validate(cfg: TrainConfig) -> None:
    """Check single values, and keys against each other.

    Raises:
        ConfigError: naming every key at fault, its value and what it should be.
    """
    broken = [*_out_of_range(cfg), *_empty(cfg), *_at_odds(cfg)]
    if broken:
        raise ConfigError("; ".join(broken))


def _out_of_range(cfg: TrainConfig) -> Iterator[str]:
    """Numbers that are too small or too large by themselves, or none (NaN)."""
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
        *(("data.train_sizes", size, 1) for size in data.train_sizes or ()),
        *(("backbone.widths", width, 1) for width in cfg.backbone.widths or ()),
        *(("backbone.blocks", count, 1) for count in cfg.backbone.blocks or ()),
        *(("head.weights", weight, 0) for weight in cfg.head.weights or ()),
    ]
    fractions = [
        ("optim.momentum", optim.momentum),
        ("optim.label_smoothing", optim.label_smoothing),
        ("optim.ema", optim.ema or 0.0),
        ("backbone.drop_path", cfg.backbone.drop_path),
        *((f"optim.betas[{i}]", beta) for i, beta in enumerate(optim.betas)),
    ]
    for key, x, low in at_least:
        most = MOST_OF.get(key, MOST)
        if not x >= low:
            yield f"{key} must be at least {low}, got {x}"
        elif x > most:
            yield f"{key} must be at most {most}, got {x}"
    yield from (f"{key} must lie in [0, 1), got {x}" for key, x in fractions if not 0 <= x < 1)
    if not 0 < optim.base_lr <= MOST:
        yield f"optim.base_lr must be positive and at most {MOST}, got {optim.base_lr}"
    if optim.clip_norm is not None and not optim.clip_norm > 0:
        yield f"optim.clip_norm must be positive or null, got {optim.clip_norm}"
    if len(optim.betas) != 2:
        yield f"optim.betas must be two numbers, got {optim.betas}"


def _empty(cfg: TrainConfig) -> Iterator[str]:
    """Texts without a letter: as a path they would mean the working folder."""
    texts = {"name": cfg.name, "run_dir": cfg.run_dir, "device": cfg.device}
    texts |= {"data.root": cfg.data.root, "backbone.name": cfg.backbone.name}
    texts |= {"tracking.project": cfg.tracking.project}
    if cfg.backbone.init is not None:
        texts["backbone.init"] = cfg.backbone.init
    yield from (f"{key} must not be empty" for key, text in texts.items() if not text.strip())


def _at_odds(cfg: TrainConfig) -> Iterator[str]:
    """Values that do not go together."""
    optim = cfg.optim
    # The warm-up of a recipe is cut to fit a first try of it, see mrl.optim.
    longest = MOST if optim.epochs < SHORT_RUN else optim.epochs
    if not 0 <= optim.warmup_epochs < longest:
        yield (
            f"optim.warmup_epochs must lie in [0, optim.epochs={optim.epochs}), "
            f"got {optim.warmup_epochs}"
        )
    if optim.accumulate > optim.batch_size:
        yield (
            f"optim.accumulate={optim.accumulate} parts cannot be made of "
            f"optim.batch_size={optim.batch_size} images"
        )
    if cfg.save.best and not cfg.data.holdout:
        yield "save.best needs images to choose by: set data.holdout"


def run_dirs(cfg: EvalConfig) -> list[str]:
    """The run directories, or the one checkpoint, to evaluate; none with ``embeddings``.

    Raises:
        ConfigError: unless exactly one of ``run``, ``ckpt`` and ``embeddings`` is given, for keys
            that do not go together, and for sections of ``evals`` that cannot be.
    """
    if [cfg.run, cfg.ckpt, cfg.embeddings].count(None) != 2:
        raise ConfigError(
            "give one of run=DIRECTORY and ckpt=FILE: which model is to be judged? Or, of a model "
            "elsewhere, embeddings=FILE"
        )
    if (cfg.run is None) != (cfg.out is not None):
        raise ConfigError(
            "out=FOLDER takes the rows of a ckpt or of embeddings and is needed with it; those of "
            f"a run go to its directory: got ckpt={cfg.ckpt}, out={cfg.out}"
        )
    if cfg.batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {cfg.batch_size}")
    if cfg.data is not None and cfg.data_root is not None:
        raise ConfigError("data.root says where the data set is: data_root is for the run's own")
    if cfg.queries is not None and cfg.split is not Split.test:
        raise ConfigError(f"split={cfg.split.name} is of the data set; queries have no splits")
    check_evals(cfg.evals)
    _check_embeddings(cfg)
    if cfg.embeddings is not None:
        return []
    runs = [cfg.run or cfg.ckpt] if isinstance(cfg.run, str | None) else cfg.run
    if not isinstance(runs, list) or not runs or not all(isinstance(run, str) for run in runs):
        raise ConfigError(f"run must be a run directory or a list of them, got {cfg.run!r}")
    return runs


def _check_embeddings(cfg: EvalConfig) -> None:
    """What belongs to embeddings of a model elsewhere, and what does not."""
    default = EvalConfig()
    theirs = ["labels", "query_embeddings", "query_labels", "num_queries", "seed", "widths"]
    theirs += ["name", "dataset"]
    ours = ["data_root", "data", "queries", "split", "feature_type"]
    unset = {"data": None, "queries": None}
    for key in theirs if cfg.embeddings is None else ours:
        value = getattr(cfg, key)
        if value != unset.get(key, getattr(default, key)):
            whose = "is for" if cfg.embeddings is None else "does not go with"
            raise ConfigError(f"{key} {whose} embeddings=FILE, got {key}={value}")
    if cfg.query_labels is not None and cfg.query_embeddings is None:
        raise ConfigError("query_labels are those of query_embeddings=FILE, which is missing")
    if cfg.num_queries is not None and cfg.query_embeddings is not None:
        raise ConfigError("num_queries draws from the bank: with query_embeddings all are taken")
    if cfg.num_queries is not None and cfg.num_queries < 1:
        raise ConfigError(f"num_queries must be at least 1 or null, got {cfg.num_queries}")


def check_evals(evals: EvalsConfig) -> None:
    """Check the evaluators' sections.

    Raises:
        ConfigError: naming the key, its value and what it should be.
    """
    if evals.interpolation is not None:
        widths = evals.interpolation.widths
        if widths not in (None, "all") and not _are_integers(widths):
            raise ConfigError(
                f"evals.interpolation.widths must be a list of widths, all or null, got {widths!r}"
            )
    if evals.truncation is not None and evals.truncation.k is not None and evals.truncation.k < 1:
        raise ConfigError(f"evals.truncation.k must be at least 1, got {evals.truncation.k}")
    if evals.retrieval is not None:
        _check_retrieval(evals.retrieval)


def _check_retrieval(cfg: RetrievalConfig) -> None:
    key, ks = "evals.retrieval", cfg.ks
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ConfigError(f"{key}.ks must be different positive numbers, got {ks}")
    if cfg.shortlist < max(ks):
        raise ConfigError(f"{key}.shortlist={cfg.shortlist} is shorter than the longest of ks={ks}")
    if cfg.timed_queries < 0:
        raise ConfigError(f"{key}.timed_queries must be at least 0, got {cfg.timed_queries}")
    for funnel in cfg.funnels or []:
        dims, lists = funnel.dims, funnel.shortlists
        if len(dims) < 2 or dims[0] < 1 or any(a >= b for a, b in pairwise(dims)):
            raise ConfigError(f"{key}.funnels: dims must be two or more and increase, got {dims}")
        if len(lists) != len(dims) - 1 or any(a < b for a, b in pairwise(lists)):
            raise ConfigError(
                f"{key}.funnels: dims={dims} need {len(dims) - 1} shortlists that never grow, "
                f"got {lists}"
            )
        if lists[-1] < min(ks):
            raise ConfigError(
                f"{key}.funnels: the last shortlist of {lists} is shorter than the least of ks={ks}"
            )


def _are_integers(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)

"""A sweep (``-m``): all jobs are checked before the first starts, and one that fails ends no other.

Hydra calls :class:`Sweep` as configs/train.yaml and eval.yaml ask it to.
"""

import atexit
import copy
import itertools
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mrl.config import ConfigError, EvalConfig, parse
from mrl.config_rules import run_dirs, validate

AGAIN = {
    "train": "The same command with resume=true goes on: what is finished stays as it is",
    "eval": "The same command goes on: what is encoded is kept",
}
MOST_SHOWN = 3  # faults of a sweep that are written out


def runs_of(words: Sequence[str]) -> list[list[str]]:
    """The overrides of each run, numbered as ``-m`` does; the last key with several values changes
    fastest.

    Raises:
        HydraException: for a word that is no override.
    """
    choices = []
    for override in OverridesParser.create().parse_overrides(list(words)):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    return [list(run) for run in itertools.product(*choices)]


def check_runs(config_name: str, runs: Sequence[Sequence[str]], always: Sequence[str] = ()) -> None:
    """Compose every run of a sweep and check its values; Hydra must be initialised.

    Args:
        always: overrides of Hydra's own keys, which all runs share.

    Raises:
        ConfigError: naming the runs that cannot be, or some that would share a directory.
    """
    before = HydraConfig.instance().cfg
    names = names_of(runs)
    runs_in: dict[str | None, list[int]] = {}
    faults = []
    for number, run in enumerate(runs):
        try:
            composed = _composed(config_name, [*always, *run], number)
            runs_in.setdefault(_place(composed), []).append(number)
        except (HydraException, OmegaConfBaseException, ConfigError) as error:
            text = " ".join(str(error).split("Config search path")[0].split())
            faults.append(f"{names[number]}: {text}")
        finally:
            HydraConfig.instance().cfg = before
    runs_in.pop(None, None)
    shared = [numbers for numbers in runs_in.values() if len(numbers) > 1]
    if shared:
        composed = _composed(config_name, [*always, *runs[shared[0][0]]], shared[0][0])
        faults.append(_clash(composed, [names[n] for n in shared[0]], [runs[n] for n in shared[0]]))
        HydraConfig.instance().cfg = before
    if faults:
        more = [f"{len(faults) - MOST_SHOWN} more like this"] * (len(faults) > MOST_SHOWN)
        none = f"none of the {len(runs)} jobs was started"
        raise ConfigError("; ".join([*faults[:MOST_SHOWN], *more, none]))


def names_of(runs: Sequence[Sequence[str]]) -> list[str]:
    """``"#2 seed=1"``: a run's number and what it does not share with all others."""
    common = set(runs[0]).intersection(*runs) if len(runs) > 1 else set()
    return [
        " ".join([f"#{number}", *(word for word in run if word not in common)])
        for number, run in enumerate(runs)
    ]


def _composed(config_name: str, words: list[str], number: int) -> DictConfig:
    """The config of one run, inside Hydra's, to which interpolations may refer."""
    composed = compose(config_name, overrides=words, return_hydra_config=True)
    with read_write(composed), open_dict(composed):
        composed.hydra.job.num = composed.hydra.job.id = number
    HydraConfig.instance().set_config(composed)
    return composed


def _place(composed: DictConfig) -> str | None:
    """The directory of a run, whose values are checked; None for an evaluation, which adds to one.

    Raises:
        ConfigError: for values that no run can have.
    """
    own = copy.deepcopy(composed)
    with read_write(own), open_dict(own):
        del own["hydra"]
    cfg = parse(own)
    if isinstance(cfg, EvalConfig):
        run_dirs(cfg)
        return None
    validate(cfg)
    return os.path.abspath(cfg.run_dir)


def _clash(composed: DictConfig, names: list[str], runs: Sequence[Sequence[str]]) -> str:
    """Runs of one directory, and the ``run_dir`` that would tell them apart."""
    text = f"{names[0]} and {names[1]} would share run_dir={composed.run_dir}"
    swept = [word for word in runs[0] if any(word not in run for run in runs)]
    if not swept:
        return f"{text}, having the same values"
    own: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, "run_dir"))
    return (
        f"{text}: write what is swept into it, as in "
        f"'run_dir={own['run_dir']}{''.join(_parts(swept, composed))}'"
    )


def _parts(words: Sequence[str], composed: DictConfig) -> Iterator[str]:
    """Pieces of a path that follow the keys of overrides: ``"-base_lr${optim.base_lr}"``."""
    for word in words:
        key = word.split("=")[0].lstrip("+")
        source = f"hydra:runtime.choices.{key}" if key in composed.hydra.runtime.choices else key
        yield f"-{key.split('.')[-1]}${{{source}}}"


def sweeping() -> bool:
    """Whether an error of this job is to reach Hydra, which then goes on with the next.

    Ranks under torchrun end together instead: one that went on would wait for the others for ever.
    """
    return HydraConfig.get().mode is RunMode.MULTIRUN and "TORCHELASTIC_RUN_ID" not in os.environ


class Sweep(Callback):
    """Refuses a sweep of which a job cannot be, and ends one by saying which jobs failed."""

    def __init__(self) -> None:
        self.here = False  # whether the jobs run in this process, one after the other
        self.waiting: list[str] = []  # jobs that have not ended
        self.failed: list[str] = []
        self.again = ""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
            return  # one that chooses its jobs as it goes
        # In which ${...} stays as it was written.
        given: Any = OmegaConf.to_container(config.hydra.overrides)
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        try:
            runs = runs_of([*params, *given["task"]])
            check_runs(kwargs["config_name"], runs, given["hydra"])
        except (ConfigError, HydraException) as error:
            sys.exit(f"error: {error}")
        # Other launchers run jobs in other processes, whose errors Hydra raises at the end.
        self.here = config.hydra.launcher._target_.endswith("BasicLauncher")
        if self.here:
            self.waiting = names_of(runs)
            self.again = AGAIN.get(kwargs["config_name"], AGAIN["train"])
            atexit.register(self._report)  # also where a signal ends the sweep

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if not self.here:
            return
        job = self.waiting.pop(0)
        if job_return.status is JobStatus.FAILED:
            self.failed.append(f"{job}: {_told(job_return)}")
            # Hydra would keep the error, and with it the memory of the model that raised it.
            job_return.return_value, job_return.status = None, JobStatus.COMPLETED

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.failed:
            sys.exit(1)

    def _report(self) -> None:
        for title, jobs in (("failed", self.failed), ("not run to the end", self.waiting)):
            if jobs:
                print(
                    f"{len(jobs)} job(s) of the sweep {title}:", *jobs, sep="\n  ", file=sys.stderr
                )
        if self.failed or self.waiting:
            print(self.again, file=sys.stderr)


def _told(job_return: JobReturn) -> str:
    """The line of a job's error, which is printed at once; of a fault of ours, with its trace."""
    from mrl.console import explained  # PyTorch loads once the jobs are sound

    try:
        return str(job_return.return_value)
    except Exception as error:
        line = explained(error)
        if line is None:
            traceback.print_exc()
            return f"{type(error).__name__}: {error}"
        print(line, file=sys.stderr)
        return line

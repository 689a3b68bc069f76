"""The record of a run: metrics.jsonl, config.yaml and env.json; dashboards only mirror it.

Metric names sort by width in a dashboard: ``val/top1/d0008``.
"""

import json
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

import torch

from mrl.files import write_atomically

if TYPE_CHECKING:
    from mrl.config import TrainConfig

INIT_TIMEOUT = 60  # seconds that W&B may take to answer before the run goes on without


def per_granularity(name: str, values: Mapping[int, float]) -> dict[str, float]:
    """``{"val/top1/d0008": value, ...}``."""
    return {f"{name}/d{m:04d}": float(value) for m, value in values.items()}


def git_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of this code, with "-dirty" if the code or its configs were changed since."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # installed: another repository's
        code = [":/mrl", ":/configs", ":/train.py", ":/eval.py"]
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment(device: torch.device, precision: str, world_size: int) -> dict[str, Any]:
    """What a number depends on besides the config."""
    return {
        "commit": git_commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "device": device_name(device),
        "precision": precision,
        "world_size": world_size,
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's, or the CPU's as Linux lists it; elsewhere its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.machine()


class Mirror(Protocol):
    """A dashboard that is shown the metrics."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class _WandbMirror:
    """A W&B run, over all starts of ours.

    Its own step only counts calls, since W&B drops what is logged at a step that it has passed, as
    a resumed run does. Charts go by "step", a metric like the others: steps that were done twice
    stand twice at the same place.
    """

    def __init__(
        self, cfg: "TrainConfig", config: Mapping[str, Any], env: Mapping[str, Any]
    ) -> None:
        try:
            import wandb
        except ImportError:
            raise ValueError("tracking=wandb needs the package: pip install wandb") from None
        options: dict[str, Any] = {
            "project": cfg.tracking.project,
            "group": cfg.name,
            "name": f"{cfg.name}-seed{cfg.seed}",
            "dir": cfg.run_dir,
            "config": {**config, "env": dict(env)},
            # A run that a scheduler stops and starts again stays one run on the dashboard.
            "id": _run_id(Path(cfg.run_dir) / "wandb_id"),
            "resume": "allow",
            "settings": wandb.Settings(init_timeout=INIT_TIMEOUT),
        }
        try:
            self.run = wandb.init(mode=cast(Any, cfg.tracking.mode.name), **options)
        except wandb.errors.UsageError as error:  # no account: the user must choose
            raise ValueError(
                f"tracking=wandb cannot start: {error}. Run `wandb login`, or tracking.mode=offline"
            ) from error
        except wandb.errors.CommError as error:
            print(f"warning: W&B is out of reach ({error}): offline, `wandb sync` later")
            self.run = wandb.init(mode="offline", **options)
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log({"step": step, **metrics})

    def close(self) -> None:
        self.run.finish()


class _TensorboardMirror:
    """Event files; steps after the one that a run goes on from are hidden, to be logged again."""

    def __init__(self, cfg: "TrainConfig", step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "tracking=tensorboard needs the package: pip install tensorboard"
            ) from None
        folder = str(Path(cfg.run_dir) / "tensorboard")
        self.writer = SummaryWriter(folder, purge_step=step + 1)
        self.step, self.shown = step, set[str]()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step != self.step:
            self.step, self.shown = step, set()
        # Two lines of the record can be of one step, and both name the epoch.
        for name in [name for name in metrics if name not in self.shown]:
            self.writer.add_scalar(name, metrics[name], step)
        self.shown |= metrics.keys()

    def close(self) -> None:
        self.writer.close()


def _run_id(path: Path) -> str:
    """The dashboard's name of this run: drawn once, then read from ``path``."""
    if not path.exists():
        write_atomically(path, secrets.token_hex(4).encode())
    return path.read_text().strip()


def _open_mirror(
    cfg: "TrainConfig", config: Mapping[str, Any], env: Mapping[str, Any], step: int
) -> Mirror | None:
    match cfg.tracking.name.name:
        case "wandb":
            return _WandbMirror(cfg, config, env)
        case "tensorboard":
            return _TensorboardMirror(cfg, step)
    return None


class RunWriter:
    """Writes a run's record; to be used by rank 0 only, as a context manager.

    Args:
        config: the configuration as plain values, ``config_yaml`` the same as text.
        step: that the run starts from; later lines of an interrupted run are dropped, since the
            steps that they describe are about to be done again.
    """

    def __init__(
        self,
        cfg: "TrainConfig",
        *,
        config: Mapping[str, Any],
        config_yaml: str,
        env: Mapping[str, Any],
        step: int,
    ) -> None:
        run_dir = Path(cfg.run_dir)
        write_atomically(run_dir / "config.yaml", config_yaml.encode())
        write_atomically(run_dir / "env.json", (json.dumps(env, indent=1) + "\n").encode())
        self.path = run_dir / "metrics.jsonl"
        _drop_lines_after(self.path, step)
        self.file = self.path.open("a")
        self.mirror = _open_mirror(cfg, config, env, step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **metrics}) + "\n")
        self.file.flush()
        self._to_mirror(lambda mirror: mirror.log(step, metrics))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.file.close()
        self._to_mirror(lambda mirror: mirror.close())

    def _to_mirror(self, action: Callable[[Mirror], None]) -> None:
        """A dashboard that fails is given up: the record is complete without it."""
        if self.mirror is None:
            return
        try:
            action(self.mirror)
        except Exception as error:  # whatever a dashboard's library raises, training goes on
            print(f"warning: the dashboard failed and is shown no more: {error!r}")
            self.mirror = None


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a line that a killed process did not finish, or none of ours
    write_atomically(path, "".join(kept).encode())

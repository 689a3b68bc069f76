"""The folder of a run: opened fresh, continued, or refused."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mrl.checkpoint import CHECKPOINT_NAME, config_of, load_checkpoint
from mrl.config import ConfigError, TrainConfig, differences
from mrl.distributed import Ranks, from_rank_0
from mrl.files import LockedError, alone

# Keys that may change when a run is continued: they say where it runs and how it is watched.
_FREE_KEYS = (
    "resume",
    "force",
    "run_dir",
    "device",
    "tracking.",
    "save.",
    "compile",
    "sync_bn",
    "optim.accumulate",
    "data.root",
    "data.workers",
    "data.download",
)


@contextmanager
def held_run_dir(cfg: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """Let no other process train into the folder meanwhile; all ranks must call this.

    Raises:
        ConfigError: if another one does, or the folder cannot be written to.
    """
    run_dir = Path(cfg.run_dir)
    with ExitStack() as held:

        def take() -> str | None:
            _contents(run_dir)
            try:
                held.enter_context(alone(run_dir / "training", wait=False))
            except LockedError as error:
                return (
                    f"run_dir={run_dir} is being trained into ({error}): wait for that process or "
                    "stop it, or choose another run_dir"
                )
            return None

        if refused := from_rank_0(take, ranks):
            raise ConfigError(refused)
        yield


def open_run_dir(cfg: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint to continue from, or None to begin; another run's folder is left as it is.

    Raises:
        ConfigError: if the folder holds a run and ``resume`` is false, a run with another config,
            or files that are no run; or if it cannot be written to.
    """
    run_dir = Path(cfg.run_dir)
    present = _contents(run_dir)
    if "config.yaml" not in present and CHECKPOINT_NAME not in present:
        if present:
            raise ConfigError(
                f"run_dir={run_dir} is not empty and holds no run ({', '.join(present[:5])}): "
                "choose another"
            )
        return None
    if not cfg.resume:
        raise ConfigError(
            f"run_dir={run_dir} holds a run already: resume=true goes on with it, "
            "run_dir=... starts another elsewhere"
        )
    if CHECKPOINT_NAME not in present:
        return None  # it was interrupted before its first checkpoint
    state = load_checkpoint(run_dir)
    changed = [
        line for line in differences(config_of(state), cfg) if not line.startswith(_FREE_KEYS)
    ]
    if changed and not cfg.force:
        raise ConfigError(
            f"run_dir={run_dir} holds a run with another config: {'; '.join(changed)}. "
            "Give the same values to go on with it, another run_dir, or force=true to go on with "
            "the new values"
        )
    return state


def refuse_changes(cfg: TrainConfig, changes: list[str]) -> None:
    """Refuse to go on with a run whose data have changed, unless ``cfg.force``.

    Raises:
        ConfigError: with the changes.
    """
    if changes and not cfg.force:
        raise ConfigError(
            f"run_dir={cfg.run_dir} began with other data than data.root={cfg.data.root} holds "
            f"now: {'; '.join(changes)}. Restore them, begin another run in another run_dir, or "
            "give force=true to go on with what is there"
        )


def _contents(run_dir: Path) -> list[str]:
    """Names in the folder, which is made if need be and tried for writing."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe = run_dir / ".write-probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been quicker
        # Names with a dot: what a killed process had not finished writing.
        names = (path.name for path in run_dir.iterdir())
        return sorted(name for name in names if not name.startswith("."))
    except OSError as error:
        raise ConfigError(f"cannot write to run_dir={run_dir}: {error.strerror}") from error

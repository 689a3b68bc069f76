"""Checkpoints: weights, optimizer, step, random states and config in one file, written atomically.

They are read with ``weights_only=True``: a pickle that wants to run code is refused.
"""

import io
import os
import pickle
import shutil
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mrl.files import temporary_of, write_atomically
from mrl.model import MRLModel, model_for

if TYPE_CHECKING:
    from mrl.config import TrainConfig

CHECKPOINT_NAME = "checkpoint.pt"
BEST_NAME = "best.pt"
# "config" and "data" (classes, in_channels) rebuild the model; the rest resumes a run.
_KEYS = {"config", "data", "step", "model", "optimizer", "rng"}
# "average" and "num_averaged": optim.ema; "scaler": fp16; "best": save.best.
_OPTIONAL_KEYS = {"average", "num_averaged", "scaler", "best"}


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file."""


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Save ``state`` (the keys above) to ``path``.

    Raises:
        CheckpointError: if it cannot be written (disk full, no permission); what stood at ``path``
            is still there, whole.
    """
    assert _KEYS <= state.keys() <= _KEYS | _OPTIONAL_KEYS, state.keys()
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        kept = "the checkpoint before it is intact" if path.exists() else "there is none before it"
        size = len(buffer.getvalue()) / 2**20
        raise CheckpointError(
            f"cannot write {path} ({size:.1f} MiB): {error.strerror or error}; {kept}"
        ) from error


class Checkpoints:
    """A run's files: checkpoint.pt, with ``keep`` > 1 older ones beside it, and best.pt.

    Args:
        saved: the checkpoint that the run continues from.
    """

    def __init__(self, run_dir: Path, keep: int, saved: Mapping[str, Any] | None) -> None:
        self.newest = run_dir / CHECKPOINT_NAME
        self.keep = keep
        self.best: dict[str, Any] | None = (saved or {}).get("best")

    def save(self, state: Mapping[str, Any], top1: float | None = None) -> None:
        """Save ``state``; with its held-out ``top1`` given, keep it apart if it is the best so far.

        Raises:
            CheckpointError: see :func:`save_checkpoint`.
        """
        if top1 is not None and (self.best is None or top1 > self.best["top1"]):
            self.best = {"top1": top1, "step": state["step"]}
        if self.best is not None:
            state = {**state, "best": self.best}
        save_checkpoint(self.newest, state)
        self.name_again(state)

    def name_again(self, state: Mapping[str, Any]) -> None:
        """Give the newest checkpoint, of which ``state`` is, its other names.

        Also to be called when a run goes on: it may have been killed right after saving.
        """
        if self.best is not None and self.best["step"] == state["step"]:
            self._link(self.newest.with_name(BEST_NAME))
        if self.keep > 1:
            self._link(self.newest.with_name(f"checkpoint-{state['step']:08d}.pt"))
            numbered = sorted(self.newest.parent.glob("checkpoint-*.pt"))
            for old in numbered[: -self.keep]:
                old.unlink()

    def _link(self, path: Path) -> None:
        """The newest checkpoint under another name, too; costs no space while it is the newest."""
        temporary = temporary_of(path)
        try:
            os.link(self.newest, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(self.newest, temporary)
        os.replace(temporary, path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The state saved at ``path``, a file or a run directory, on the CPU.

    Raises:
        CheckpointError: if there is none, or it is truncated, foreign, or wants to run code.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CHECKPOINT_NAME
    state = read_file(path)
    check_intact(path)
    missing = _KEYS - state.keys() if isinstance(state, dict) else _KEYS
    if missing:
        raise CheckpointError(
            f"{path} is not a checkpoint of this project: it lacks {', '.join(sorted(missing))}"
        )
    _check_fields(path, state)
    return state


def _check_fields(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse fields of another type than ours: somebody else's file, or one changed by hand."""
    data, best = state["data"], state.get("best", {"top1": 0.0, "step": 0})
    sound = {
        **{key: isinstance(state[key], dict) for key in ("config", "model", "optimizer")},
        "average": isinstance(state.get("average", {}), dict),
        "step": type(state["step"]) is int and state["step"] >= 0,
        "rng": isinstance(state["rng"], list) and all(isinstance(r, dict) for r in state["rng"]),
        "data": isinstance(data, dict)
        and _are_names(data.get("classes"))
        and data["classes"] != []
        and type(data.get("in_channels")) is int
        and data["in_channels"] > 0
        and isinstance(data.get("pixels", {}), dict)
        and (data.get("holdout") is None or _are_names(data["holdout"])),
        "best": isinstance(best, dict) and type(best.get("step")) is int and "top1" in best,
    }
    if wrong := [key for key, is_sound in sound.items() if not is_sound]:
        raise CheckpointError(
            f"{path} is not a checkpoint of this project: its {', '.join(wrong)} is of another kind"
        )


def _are_names(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def read_file(path: Path, *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU: tensors, numbers, strings, their lists.

    Args:
        mmap: leave tensors on the disk until they are looked at, where the file allows it.

    Raises:
        CheckpointError: if there is none, or it is truncated, foreign, or wants to run code.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a file")
    try:
        # The options of a training script, which timm keeps beside its weights, are plain values.
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # of what is refused
            mmap = mmap and zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint at {path}") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it holds more than tensors, numbers and strings, or is no PyTorch "
            f"file ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # bytes that are no pickle make it raise many types
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is damaged or cut short: {first_line}") from error


def check_intact(path: Path) -> None:
    """Compare the checksums that ``torch.save`` wrote: ``torch.load`` does not look at them.

    Raises:
        CheckpointError: if a byte has changed since.
    """
    if not zipfile.is_zipfile(path):
        return  # the format before PyTorch 1.6, which has none
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {damaged} in it is wrong. Take an older one, or a "
            "copy"
        )


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors in a .safetensors file.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    from safetensors import SafetensorError  # comes with timm
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not there or damaged: {error}") from error


def is_checkpoint(path: Path) -> bool:
    """Whether the file holds what :func:`save_checkpoint` saves.

    Raises:
        CheckpointError: see :func:`read_file`.
    """
    state = read_file(path, mmap=True)
    return isinstance(state, dict) and state.keys() >= _KEYS


def config_of(state: Mapping[str, Any]) -> "TrainConfig":
    """The configuration inside a loaded checkpoint."""
    from mrl.config import from_dict  # needs Hydra, which those who only want the head may lack

    return from_dict(state["config"])


def model_of(state: Mapping[str, Any]) -> MRLModel:
    """The model inside a loaded checkpoint, rebuilt from its config alone, in eval mode.

    Its weights are the running average, where the run kept one (optim.ema).

    Raises:
        CheckpointError: if the weights do not fit the model that the config describes.
    """
    cfg = config_of(state)
    cfg.backbone.pretrained = False  # the weights come from the checkpoint: download nothing
    model = model_for(cfg, state["data"])
    try:
        model.load_state_dict(state.get("average", state["model"]))
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the checkpoint's config: {error}") from error
    return model.eval()


def load_model(path: str | Path) -> MRLModel:
    """The trained model at ``path``, in eval mode on the CPU.

    ``path`` is a checkpoint, a run directory, an export (``.safetensors``), or one of the original
    authors' ``.pt`` files (see :func:`mrl.released.load_released`).

    Raises:
        CheckpointError: see :func:`load_checkpoint`.
    """
    from mrl.export import load_exported  # these import this module
    from mrl.released import is_state_dict, load_released

    path = Path(path)
    if path.suffix == ".safetensors":
        return load_exported(path)
    if is_state_dict(path):
        return load_released(path)
    return model_of(load_checkpoint(path))


def get_rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of the global generators that dropout and stochastic depth draw from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Go on drawing where :func:`get_rng_state` was.

    Raises:
        CheckpointError: if ``state`` is nothing of the kind.
    """
    try:
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random state is unusable: {error!r}") from error

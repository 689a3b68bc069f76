"""Train one model: ``python train.py experiment=fashion_mnist_mrl``; also under torchrun."""

import os
import sys
from importlib.util import find_spec
from shutil import which

import hydra
from omegaconf import DictConfig

from mrl import config
from mrl.checkpoint import CheckpointError
from mrl.config_rules import validate
from mrl.distributed import process_group
from mrl.stopping import orderly_end

config.register()

GOES_ON = "the same command with resume=true goes on"
NEEDS_LESS_MEMORY = """
It takes less with optim.accumulate=2 (the same batch, in two parts) or more GPUs; with resume=true
a run that was under way goes on from its last checkpoint"""


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    with orderly_end(GOES_ON):
        train(composed)


def train(composed: DictConfig) -> None:
    # torch and timm load once the config is sound
    from torch import OutOfMemoryError

    from mrl.data.workers import WorkerError
    from mrl.train_loop import NonFiniteError, fit

    try:
        cfg = config.parse(composed)
        validate(cfg)
        with process_group(cfg.device) as (ranks, device):
            checkpoint = fit(cfg, ranks, device)
            if ranks.is_main:
                print(f"checkpoint: {checkpoint}\nnext: python eval.py run={cfg.run_dir}")
    except (ValueError, CheckpointError, NonFiniteError, OSError, OutOfMemoryError) as error:
        if "SUBMITIT_EXECUTOR" in os.environ:
            raise  # a job's exceptions reach the sweep that waits for it; exit codes do not
        advice = NEEDS_LESS_MEMORY if isinstance(error, OutOfMemoryError) else ""
        advice = f"; {GOES_ON}" if isinstance(error, WorkerError) else advice
        sys.exit(f"error: {error}{advice}")


def launcher_fault(words: list[str]) -> str | None:
    """Why the launcher that the command line names cannot work here."""
    launchers = [word for word in words if "launcher=submitit" in word]
    if launchers and find_spec("submitit") is None:
        return "this launcher needs a package: pip install hydra-submitit-launcher"
    if any("submitit_slurm" in word for word in launchers) and which("srun") is None:
        return (
            "this launcher needs SLURM, and there is no srun here: use it on a machine of the "
            "cluster, or hydra/launcher=submitit_local on this one"
        )
    return None


if __name__ == "__main__":
    if fault := launcher_fault(sys.argv):
        sys.exit(f"error: {fault}")
    main()

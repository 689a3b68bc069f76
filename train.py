"""Train one model: ``python train.py experiment=fashion_mnist_mrl``; also under torchrun."""

import os
import sys

import hydra
from omegaconf import DictConfig

from mrl import config
from mrl.checkpoint import CheckpointError
from mrl.command_line import CommandLineError, as_typed, launcher_fault, override
from mrl.config_rules import validate
from mrl.distributed import process_group

config.register()

NEEDS_LESS_MEMORY = """
It takes less with optim.accumulate=2 (the same batch, in two parts) or more GPUs; with resume=true
a run that was under way goes on from its last checkpoint"""


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    # torch and timm load once the config is sound
    from torch import OutOfMemoryError

    from mrl.stopping import StoppedError
    from mrl.train_loop import NonFiniteError, fit

    try:
        cfg = config.parse(composed)
        validate(cfg)
        with process_group(cfg.device) as (ranks, device):
            checkpoint = fit(cfg, ranks, device)
            if ranks.is_main:
                print(
                    f"checkpoint: {checkpoint}\nnext: python eval.py {override('run', cfg.run_dir)}"
                )
    except (ValueError, CheckpointError, NonFiniteError, OSError, OutOfMemoryError) as error:
        if "SUBMITIT_EXECUTOR" in os.environ:
            raise  # a job's exceptions reach the sweep that waits for it; exit codes do not
        advice = NEEDS_LESS_MEMORY if isinstance(error, OutOfMemoryError) else ""
        sys.exit(f"error: {error}{advice}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command with resume=true goes on")
    except StoppedError as stopped:
        print(f"{stopped}; the same command with resume=true goes on", file=sys.stderr)
        # torchrun would start a failed run again at once, on a machine that is to be left.
        sys.exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else 128 + stopped.signal_number)


if __name__ == "__main__":
    if fault := launcher_fault(sys.argv):
        sys.exit(f"error: {fault}")
    try:
        sys.argv[1:] = as_typed(sys.argv[1:], config.TrainConfig)
    except CommandLineError as error:
        sys.exit(f"error: {error}")
    main()

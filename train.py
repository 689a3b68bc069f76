"""Train one model: ``python train.py experiment=fashion_mnist_mrl``; also under torchrun."""

import os
import sys

import hydra
from omegaconf import DictConfig

from mrl import config
from mrl.command_line import CommandLineError, launcher_fault, override
from mrl.config_rules import validate
from mrl.override_rules import read
from mrl.sweep import sweeping

config.register()

GOES_ON = "the same command with resume=true goes on"
NEEDS_LESS_MEMORY = """
It takes less with optim.accumulate=2 (the same batch, in two parts) or more GPUs; with resume=true
a run that was under way goes on from its last checkpoint"""


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(composed: DictConfig) -> None:
    sys.stdout.reconfigure(line_buffering=True)  # a log file gets each line when it is printed
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # for bars of torchvision and timm
    try:
        cfg = config.parse(composed)
        validate(cfg)
    except config.ConfigError as error:
        if sweeping():
            raise
        sys.exit(f"error: {error}")
    from mrl.stopping import orderly_end  # torch and timm load once the config is sound

    with orderly_end(GOES_ON):
        train(cfg)


def train(cfg: config.TrainConfig) -> None:
    from mrl.console import explained
    from mrl.data.workers import WorkerError
    from mrl.distributed import process_group
    from mrl.train_loop import fit

    try:
        with process_group(cfg.device) as (ranks, device):
            checkpoint = fit(cfg, ranks, device)
            if ranks.is_main:
                print(
                    f"checkpoint: {checkpoint}\nnext: python eval.py {override('run', cfg.run_dir)}"
                )
    except Exception as error:
        line = explained(error, NEEDS_LESS_MEMORY)
        if line is None or sweeping():
            raise
        sys.exit(f"{line}; {GOES_ON}" if isinstance(error, WorkerError) else line)


if __name__ == "__main__":
    if fault := launcher_fault(sys.argv):
        sys.exit(f"error: {fault}")
    try:
        sys.argv[1:] = read(sys.argv[1:], config.TrainConfig)
    except CommandLineError as error:
        sys.exit(f"error: {error}")
    main()

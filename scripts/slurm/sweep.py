"""The runs of a sweep, numbered as ``python train.py -m`` numbers them: for job arrays.

python scripts/slurm/sweep.py experiment=fashion_mnist_ff 'head.granularities=[2],[8]' seed=0,1
"""

import argparse
import sys
from pathlib import Path

from hydra import initialize_config_dir
from hydra.errors import HydraException

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mrl import config
from mrl.command_line import CommandLineError
from mrl.override_rules import read
from mrl.sweep import check_runs, runs_of

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=int, help="print this run's overrides only, one a line")
    parser.add_argument("overrides", nargs="+")
    args = parser.parse_args()
    try:
        _, *words = read(["-m", *args.overrides], config.TrainConfig)
        runs = runs_of(words)
        config.register()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            check_runs("train", runs)
    except (CommandLineError, HydraException, config.ConfigError) as error:
        sys.exit(f"error: {error}")
    if args.task is None:
        print("\n".join(f"{i}: {' '.join(run)}" for i, run in enumerate(runs)))
    elif 0 <= args.task < len(runs):
        print("\n".join(runs[args.task]))
    else:
        sys.exit(
            f"error: the overrides make {len(runs)} run(s), so there is no run {args.task}: "
            f"submit with --array=0-{len(runs) - 1}"
        )


if __name__ == "__main__":
    main()

"""The runs of a sweep, numbered as ``python train.py -m`` numbers them: for job arrays.

python scripts/slurm/sweep.py experiment=fashion_mnist_ff 'head.granularities=[2],[8]' seed=0,1
"""

import argparse
import itertools
import sys
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mrl import config
from mrl.command_line import CommandLineError, as_typed


def runs_of(words: list[str]) -> list[list[str]]:
    """The overrides of each run; the last key with several values changes fastest."""
    choices = []
    _, *words = as_typed(["-m", *words], config.TrainConfig)
    for override in OverridesParser.create().parse_overrides(words):
        if override.is_sweep_override():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line])
    return [list(run) for run in itertools.product(*choices)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", type=int, help="print this run's overrides only, one a line")
    parser.add_argument("overrides", nargs="+")
    args = parser.parse_args()
    try:
        runs = runs_of(args.overrides)
    except (CommandLineError, HydraException) as error:
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

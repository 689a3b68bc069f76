"""Evaluate trained runs: ``python eval.py run=outputs/fashion_mnist_mrl/seed0``.

Some evaluators: ``'evals=[classify,knn]'``; the held-out images: ``split=holdout``; several runs:
``'run=[outputs/a/seed0,outputs/a/seed1]'``, or ``-m run=outputs/a/seed0,outputs/a/seed1``.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig
from tabulate import tabulate

from mrl import config
from mrl.checkpoint import CheckpointError

config.register()


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(composed: DictConfig) -> None:
    # torch and timm load once the config is sound
    from mrl.evaluation import as_table, evaluate_run

    try:
        cfg = config.parse(composed)
        for run in config.run_dirs(cfg):
            rows = evaluate_run(Path(run), cfg)
            if not rows:
                print(f"\n{run}: these evaluators have nothing to say about this model")
                continue
            first, (header, body) = rows[0], as_table(rows)
            print(
                f"\n{first.method} ({run}), % of {first.n} images of {first.dataset} {first.split}"
            )
            print(tabulate(body, headers=header, disable_numparse=True, stralign="right"))
            print(f"rows: {run}/rows.jsonl")
    except (ValueError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; embeddings that were complete are kept")


if __name__ == "__main__":
    main()

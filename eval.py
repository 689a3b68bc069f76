"""Evaluate trained models: ``python eval.py run=outputs/fashion_mnist_mrl/seed0``.

Some evaluators: ``'evals=[classify,knn]'``; the held-out images: ``split=holdout``; several runs:
``'run=[outputs/a/seed0,outputs/a/seed1]'``, or ``-m run=outputs/a/seed0,outputs/a/seed1``.
A single file, which may be the original authors': ``ckpt=FILE out=FOLDER data=imagefolder
data.root=IMAGENET``.  Images of other folders: ``queries=imagenet_v2 queries.root=FOLDER``.
Several GPUs: ``torchrun --nproc-per-node=4 eval.py run=...``.
"""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig
from tabulate import tabulate

from mrl import config
from mrl.checkpoint import CheckpointError
from mrl.config_rules import run_dirs

config.register()


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(composed: DictConfig) -> None:
    # torch and timm load once the config is sound
    from mrl.evaluation import as_table, evaluate_run

    rank, world_size = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    try:
        cfg = config.parse(composed)
        runs = run_dirs(cfg)
        if world_size > 1 and len(runs) > 1:
            raise ValueError(f"torchrun takes one run at a time, got {len(runs)}")
        for run in runs:
            rows = evaluate_run(Path(run), cfg)
            if rank > 0:
                continue
            if not rows:
                print(f"\n{run}: these evaluators have nothing to say about this model")
                continue
            first, (header, body) = rows[0], as_table(rows)
            print(
                f"\n{first.method} ({run}), % of {first.n} images of {first.dataset} {first.split}"
            )
            print(tabulate(body, headers=header, disable_numparse=True, stralign="right"))
            print(f"rows: {cfg.out or run}/rows.jsonl")
    except (ValueError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what was encoded is kept, and the same command goes on from there")


if __name__ == "__main__":
    main()

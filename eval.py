"""Evaluate trained models: ``python eval.py run=outputs/fashion_mnist_mrl/seed0``.

Some evaluators: ``'evals=[classify,knn]'``; the held-out images: ``split=holdout``; several runs:
``'run=[outputs/a/seed0,outputs/a/seed1]'``, or ``-m run=outputs/a/seed0,outputs/a/seed1``.
A single file, which may be the original authors': ``ckpt=FILE out=FOLDER data=imagefolder
data.root=IMAGENET``.  Images of other folders: ``queries=imagenet_v2 queries.root=FOLDER``.
What a model elsewhere made of any items, with or without their labels: ``embeddings=BANK.npy
labels=LABELS.npy out=FOLDER``, also with ``query_embeddings=...``.
Several GPUs: ``torchrun --nproc-per-node=4 eval.py run=...``.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from omegaconf import DictConfig
from tabulate import tabulate

from mrl import config
from mrl.checkpoint import CheckpointError
from mrl.command_line import CommandLineError
from mrl.config_rules import run_dirs
from mrl.override_rules import read
from mrl.stopping import orderly_end
from mrl.sweep import sweeping

if TYPE_CHECKING:
    from mrl.evaluation import Row

config.register()


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(composed: DictConfig) -> None:
    with orderly_end("what was encoded is kept, and the same command goes on from there"):
        evaluate(composed)


def evaluate(composed: DictConfig) -> None:
    # torch and timm load once the config is sound
    from torch import OutOfMemoryError

    from mrl.evaluation import evaluate_embeddings, evaluate_run

    rank, world_size = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE"))
    try:
        cfg = config.parse(composed)
        runs = run_dirs(cfg)
        if world_size > 1 and len(runs) > 1:
            raise ValueError(f"torchrun takes one run at a time, got {len(runs)}")
        if cfg.embeddings is not None:
            if world_size > 1:
                raise ValueError(
                    "embeddings=FILE is judged by one process: run it without torchrun"
                )
            show(evaluate_embeddings(cfg), cfg.embeddings, "items", str(cfg.out))
        for run in runs:
            rows = evaluate_run(Path(run), cfg)
            if rank == 0:
                show(rows, run, "images", cfg.out or run)
    except (ValueError, CheckpointError, OSError) as error:
        if sweeping():
            raise
        sys.exit(f"error: {error}")
    except OutOfMemoryError as error:
        if sweeping():
            raise
        sys.exit(
            f"error: {error}\nEncoding takes less with a batch_size below {cfg.batch_size}; with "
            "device=cpu the machine's memory is used. What was encoded and measured is kept"
        )


def show(rows: "list[Row]", source: str, items: str, folder: str) -> None:
    """Print the tables of what was measured of ``source``."""
    from mrl.evaluation import as_table, search_table

    if not rows:
        print(f"\n{source}: these evaluators have nothing to say about this model")
        return
    first = rows[0]
    print(f"\n{first.method} ({source}), % of {first.n} {items} of {first.dataset} {first.split}")
    for header, body in (as_table(rows), search_table(rows)):
        if body:
            print(tabulate(body, headers=header, disable_numparse=True, stralign="right"))
            print()
    print(f"rows: {folder}/rows.jsonl")


if __name__ == "__main__":
    try:
        sys.argv[1:] = read(sys.argv[1:], config.EvalConfig)
    except CommandLineError as error:
        sys.exit(f"error: {error}")
    main()

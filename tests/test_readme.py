"""The README's commands: every override is a key, every script and file is there."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from mrl.config_rules import validate
from mrl.distributed import Ranks
from mrl.train_loop import fit

ROOT = Path(__file__).parent.parent
TEXT = re.sub(r"\\\n\s*", "", (ROOT / "README.md").read_text())  # commands over several lines
LINES = [line.strip() for line in TEXT.splitlines()]
TRAIN = [line for line in LINES if re.match(r"(python|torchrun .*) ?train\.py ", line)]


def overrides_of(line):
    words = shlex.split(line.split("train.py", 1)[1])
    words = [word for word in words if not word.startswith("hydra")]  # how to run, not what
    if "-m" not in words:
        return words
    # Of a sweep, its first job: "seed=0,1" -> "seed=0", "x=[2],[8]" -> "x=[2]".
    return [re.sub(r"=(\[.*?\]|[^\[,]*),.*", r"=\1", word) for word in words if word != "-m"]


@pytest.mark.parametrize("line", TRAIN)
def test_the_command_composes(compose_train, line):
    validate(compose_train(*overrides_of(line)))


# One's own pictures, with a smaller network of the same family, by its optimiser and by the other.
PICTURES = "python train.py experiment=pictures_mrl backbone.pretrained=false"
PICTURES += " backbone.name=convnext_atto"
SMALL_ENOUGH = [line for line in TRAIN if "experiment=fashion_mnist_mrl optim.epochs" in line]
SMALL_ENOUGH += [line for line in TRAIN if "vit_tiny" in line]
SMALL_ENOUGH += [PICTURES, f"{PICTURES} optim=sgd"]


@pytest.mark.slow
@pytest.mark.parametrize("line", SMALL_ENOUGH)
def test_the_recipe_learns(compose_train, tmp_path, line):
    """At the recipe's own peak rate, on images that any sound recipe tells apart in 80 steps."""
    words = [word for word in overrides_of(line) if not word.startswith("run_dir")]
    recipe = compose_train(*words).optim
    size = 16 if "fashion" in line else 32
    cfg = compose_train(
        *words,
        "data=synthetic",
        f"data.image_size={size}",
        "data.num_images=840",
        "data.holdout=200",
        "optim.epochs=4",
        "optim.warmup_epochs=1",
        "optim.batch_size=32",
        f"optim.base_lr={recipe.base_lr * recipe.batch_size / 32}",
        "optim.precision=fp32",
        f"run_dir={tmp_path}/run",
    )
    fit(cfg, Ranks(), torch.device("cpu"))
    last = json.loads(Path(cfg.run_dir, "metrics.jsonl").read_text().splitlines()[-1])
    widest = max(name for name in last if name.startswith("holdout"))
    assert last[widest] > 97  # chance: 10; AdamW with SGD's rate: 90


def test_there_are_commands_to_check():
    assert len(SMALL_ENOUGH) == 4
    assert len(TRAIN) >= 8


def test_every_script_and_folder_that_is_named_exists():
    text = "\n".join(LINES)
    folders = "scripts|configs|mrl|results|tests"
    named = set(re.findall(rf"(?<![\w/])(?:{folders})/[\w/]*(?:\.\w+)?", text))
    missing = [n for n in sorted(named) if "NAME" not in n and not (ROOT / n).exists()]
    assert missing == []

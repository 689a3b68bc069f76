"""The README's commands: every override is a key, every script and file is there."""

import re
import shlex
from pathlib import Path

import pytest

from mrl.config_rules import validate

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


def test_there_are_commands_to_check():
    assert len(TRAIN) >= 8


def test_every_script_and_folder_that_is_named_exists():
    text = "\n".join(LINES)
    folders = "scripts|configs|mrl|results|tests"
    named = set(re.findall(rf"(?<![\w/])(?:{folders})/[\w/]*(?:\.\w+)?", text))
    missing = [n for n in sorted(named) if "NAME" not in n and not (ROOT / n).exists()]
    assert missing == []

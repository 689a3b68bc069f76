"""Words of the command line reach the config as they were typed, and printed ones work."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from mrl import command_line, config
from mrl.command_line import CommandLineError, as_typed, launcher_fault, override

ROOT = Path(__file__).parent.parent
TRAIN, EVAL = config.TrainConfig, config.EvalConfig


def composed_eval(*words: str) -> config.EvalConfig:
    """As eval.py sees what the shell hands to it."""
    config.register()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return config.parse(compose("eval", overrides=as_typed(words, EVAL)))


NASTY = ["lr=0.1,seed=0", "my run (2)", "Läufe", "数据/z", "a,b", "[a]", "{a: 1}", "it's", 'a "b"']
NASTY += ["a\\", "a\\\\", "\\'", '\\"', "$HOME", "${seed}", "\\${seed}", "\\\\${a}\\", "${", "a#b"]
NASTY += [
    "null",
    "NULL",
    "true",
    "3.10",
    "1e5",
    "007",
    "0x10",
    "nan",
    "-1",
    "~/a",
    "a b ",
    " ",
    "a;b",
]
NASTY += ["choice(a,b)", "a:b", "a\nb", "!a", "*", "'", '"', "\\", "a\\ ", "%a", "<a>&|", "e\u0301"]
NUMBERS = [
    "2024_05",
    "3.10",
    "1e5",
    "007",
    "0x10",
    "true",
    "False",
    "nan",
    "-inf",
    "+5",
    ".5",
    "1.",
]


def test_printed_words_give_their_texts() -> None:
    values = [shlex.split(override("run", text))[0].removeprefix("run=") for text in NASTY]
    cfg = composed_eval(f"run=[{','.join(values)}]", f"name={values[0]}", f"dataset={values[1]}")
    assert (cfg.run, cfg.name, cfg.dataset) == (NASTY, NASTY[0], NASTY[1])


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@example("a\\'\\\"${")
def test_any_text_survives_the_shell_and_hydra(text: str) -> None:
    (word,) = shlex.split(override("name", text))
    (read,) = as_typed([word], EVAL)
    parsed = OverridesParser.create().parse_override(read).value()
    assert parsed == command_line.without_references(text)


def test_plain_paths_are_printed_as_they_are() -> None:
    assert override("run", Path("outputs/a-b/seed0")) == "run=outputs/a-b/seed0"
    assert override("run", "my run") == "'run=\"my run\"'"


def test_a_reference_in_a_path_survives_the_checkpoint(compose_train) -> None:
    cfg = compose_train()
    cfg.run_dir = "a\\${b}/${seed}"
    assert config.from_dict(config.to_dict(cfg)) == cfg


def test_names_that_look_like_numbers_stay() -> None:
    assert composed_eval(f"run=[{','.join(NUMBERS)}]").run == NUMBERS
    cfg = composed_eval("name=2024_05", "++dataset=3.10", "out= 1e5 ", "+labels=true")
    assert (cfg.name, cfg.dataset, cfg.out, cfg.labels) == ("2024_05", "3.10", "1e5", "true")


@pytest.mark.parametrize("text", NUMBERS)
@pytest.mark.parametrize(
    "key", ["name", "run_dir", "data.root", "tracking.project", "backbone.init"]
)
def test_every_text_key_keeps_what_looks_like_a_number(key: str, text: str) -> None:
    (word,) = as_typed([f"{key}={text}"], TRAIN)
    assert OverridesParser.create().parse_override(word).value() == text


def test_null_unsets_what_can_be_unset() -> None:
    cfg = composed_eval("name=null", "dataset=null", "out=null")
    assert (cfg.name, cfg.dataset, cfg.out) == (None, "null", None)
    assert composed_eval('name="null"').name == "null"


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("name='3.10'", "name='3.10'"),
        ('name="a,3.10,b"', 'name="a,3.10,b"'),
        ("name=a${seed}", "name=a${seed}"),
        ("name=${seed}", "name=${seed}"),
        ("name=v3.10", "name=v3.10"),
        ("name=", "name="),
        ("name=3.10,1e5,a", 'name="3.10","1e5",a'),
        ("name=choice(3.10, true)", 'name=choice("3.10", "true")'),
        ("name=range(1,3)", "name=range(1,3)"),
        ("backbone.trainable=[4.10,a]", 'backbone.trainable=["4.10",a]'),
        ("seed=007", "seed=007"),
        ("optim.base_lr=1e5", "optim.base_lr=1e5"),
        ("~name", "~name"),
        ("experiment=1e5", "experiment=1e5"),
        ("--config-dir=1.0", "--config-dir=1.0"),
    ],
)
def test_what_is_left_and_what_is_quoted(word: str, read: str) -> None:
    assert as_typed(["-m", word], TRAIN) == ["-m", read]


@pytest.mark.parametrize(
    ("typed", "cure"),
    [
        ("run=/x/数据/z", '"/x/数据/z"'),
        ("run=my run (2)", '"my run (2)"'),
        ("run=lr=0.1", '"lr=0.1"'),
        ("run=[a,Läufe]", '["a","Läufe"]'),
        ("run=['a',Läufe]", """['a',"Läufe"]"""),
        ("run=a,b", '"a,b"'),
        ("out=ä/${seed}", '"ä/${seed}"'),
    ],
)
def test_what_hydra_cannot_read_is_refused_with_the_word_that_it_can(typed: str, cure: str) -> None:
    with pytest.raises(CommandLineError) as refused:
        as_typed([typed], EVAL)
    assert "quotes" in str(refused.value)
    cured = f"{typed.split('=')[0]}={cure}"
    assert str(refused.value).endswith(f": {shlex.quote(cured)}")
    assert as_typed([cured], EVAL) == [cured]


def test_a_sweep_over_paths_is_refused_with_each_in_quotes() -> None:
    with pytest.raises(CommandLineError, match='\'run="a","é"\''):
        as_typed(["-m", "run=a,é"], EVAL)


@pytest.mark.parametrize(("script", "key"), [("train.py", "run_dir"), ("eval.py", "run")])
def test_the_entry_points_say_it_in_one_line(script: str, key: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, f"{key}=/é"])
    with pytest.raises(SystemExit, match=rf"^error: {key}=/é has signs .* '{key}=\"/é\"'$"):
        runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("find_spec", "pip install hydra-submitit-launcher"), ("which", "there is no srun here")],
    ids=["package", "SLURM"],
)
def test_a_launcher_that_cannot_work_here_is_explained(missing, message, monkeypatch) -> None:
    for name in ("find_spec", "which"):
        monkeypatch.setattr(command_line, name, lambda name: name)
    assert launcher_fault(["-m", "hydra/launcher=submitit_slurm"]) is None
    monkeypatch.setattr(command_line, missing, lambda name: None)
    fault = launcher_fault(["-m", "hydra/launcher=submitit_slurm"])
    assert fault is not None and message in fault
    assert launcher_fault(["-m", "seed=0,1"]) is None

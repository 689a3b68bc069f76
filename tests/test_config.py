import copy
import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mrl import config
from mrl.config_rules import validate
from mrl.optim import fitting_warmup

CONFIGS = Path(__file__).parent.parent / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


REQUIRED = {
    name: re.findall(r"(\w+): \"?\$\{required:", (CONFIGS / f"experiment/{name}.yaml").read_text())
    for name in EXPERIMENTS
}


def filled(name):
    """Overrides that give an experiment what it wants from the command line."""
    return [f"experiment={name}", *(f"backbone.{key}=given" for key in REQUIRED[name])]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_under_its_own_name(compose_train, name):
    cfg = compose_train(*filled(name))
    validate(cfg)
    assert cfg.name == name
    assert cfg.run_dir.startswith(f"outputs/{name}/")


def test_every_option_is_chosen_by_a_default_or_an_experiment():
    chosen = set()
    for path in [CONFIGS / "train.yaml", *(CONFIGS / "experiment").glob("*.yaml")]:
        for entry in yaml.safe_load(path.read_text()).get("defaults", []):
            if isinstance(entry, dict):
                chosen |= {(k.removeprefix("override ").strip("/"), v) for k, v in entry.items()}
    groups = ("data", "backbone", "head", "optim")
    options = {(g, path.stem) for g in groups for path in (CONFIGS / g).glob("*.yaml")}
    for group, name in options.copy():  # options that others vary
        bases = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text()).get("defaults", [])
        chosen |= {(group, base) for base in bases if base != "_self_"}
    assert options - chosen == {("data", "synthetic")}  # the tests' own


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if REQUIRED[name]])
def test_what_an_experiment_wants_from_the_command_line_is_asked_for(compose_train, name):
    for key in REQUIRED[name]:
        with pytest.raises(config.ConfigError, match=rf"no value for backbone\.{key} \(.+\)"):
            compose_train(f"experiment={name}")
    assert compose_train(*filled(name)).backbone.init == "given"
    assert compose_train(f"experiment={name}", "backbone.init=null").backbone.init is None


@pytest.mark.parametrize("key", ["seed", "optim.epochs", "head.granularities", "data.flip"])
def test_any_key_can_be_required(key):
    """Also one that is no text, and one that has a default."""
    config.register()
    with (
        initialize_config_dir(str(CONFIGS), version_base="1.3"),
        pytest.raises(config.ConfigError, match=rf"no value for {key} \(a number\): give one"),
    ):
        config.parse(compose("train", overrides=[f"{key}='${{required:a number}}'"]))


def test_no_file_asks_by_question_marks_which_a_default_would_replace():
    for path in CONFIGS.rglob("*.yaml"):
        assert "???" not in path.read_text(), path


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("recipe", ["sgd", "adamw", "imagenet_adamw"])
def test_an_optimiser_brings_its_own_recipe(compose_train, name, recipe):
    """An experiment may say how long it trains, in a file of its own; the rest is the choice's."""
    chosen = compose_train(*filled(name), f"optim={recipe}").optim
    plain = compose_train(f"optim={recipe}").optim
    duration = {"epochs": plain.epochs, "warmup_epochs": plain.warmup_epochs}
    assert dataclasses.replace(chosen, **duration) == plain


def test_the_run_directory_follows_name_seed_and_width(compose_train):
    assert compose_train("experiment=fashion_mnist_mrl", "seed=3").run_dir == (
        "outputs/fashion_mnist_mrl/seed3"
    )
    ff = compose_train("experiment=fashion_mnist_ff", "head.granularities=[8]", "seed=1")
    assert ff.run_dir == "outputs/fashion_mnist_ff/m8-seed1"


@pytest.mark.parametrize(
    "override", ["optim.epoch=3", "+optim.epoch=3", "+typo=1", "head.dims=[8]"]
)
def test_a_misspelt_key_is_refused_also_with_a_plus(compose_train, override):
    key = override.lstrip("+").split("=")[0].split(".")[-1]
    with pytest.raises(Exception, match=key):
        compose_train(override)


@pytest.mark.parametrize(
    "override",
    ["optim.epochs=many", "head.granularities=[a]", "head.kind=other", "head.granularities=[2.5]"],
)
def test_a_value_of_another_type_is_refused(compose_train, override):
    with pytest.raises(Exception, match=override.split("=")[0].split(".")[-1]):
        compose_train(override)


def test_a_missing_value_is_named():
    config.register()
    with (
        initialize_config_dir(str(CONFIGS), version_base="1.3"),
        pytest.raises(config.ConfigError, match="optim.epochs"),
    ):
        config.parse(compose("train", overrides=["optim.epochs=???"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.epochs=0", "optim.epochs must be at least 1, got 0"),
        ("optim.batch_size=-1", "optim.batch_size must be at least 1, got -1"),
        ("optim.base_lr=0", "optim.base_lr must be positive"),
        ("optim.base_lr=nan", "optim.base_lr must be positive"),
        ("optim.label_smoothing=1", r"optim.label_smoothing must lie in \[0, 1\)"),
        ("optim.warmup_epochs=99", "optim.warmup_epochs must lie in"),
        ("optim.clip_norm=0", "optim.clip_norm must be positive"),
        ("optim.betas=[0.9]", "optim.betas must be two numbers"),
        ("data.holdout=-1", "data.holdout must be at least 0, got -1"),
        ("seed=-1", "seed must be at least 0"),
        ("tracking.log_every=0", "tracking.log_every"),
    ],
)
def test_values_that_cannot_be_are_named(compose_train, override, message):
    with pytest.raises(config.ConfigError, match=message):
        validate(compose_train(override))


@pytest.mark.parametrize(
    ("override", "epochs", "expected"),
    [
        ("optim=sgd", 1, 1 / 3),
        ("optim=sgd", 2, 2 / 3),
        ("optim=sgd", 3, 2.0),  # as before, where it fits
        ("optim=adamw", 1, 1 / 3),
        ("optim=imagenet_adamw", 1, 1 / 3),
        ("optim=imagenet_adamw", 9, 3.0),
        ("optim.warmup_epochs=0", 1, 0.0),
    ],
)
def test_a_recipe_can_be_tried_for_an_epoch(compose_train, override, epochs, expected):
    cfg = compose_train(override, f"optim.epochs={epochs}")
    validate(cfg)
    assert fitting_warmup(cfg.optim.warmup_epochs, epochs) == pytest.approx(expected)


def test_every_fault_is_named_at_once(compose_train):
    with pytest.raises(
        config.ConfigError, match=r"optim\.epochs.*optim\.batch_size|batch_size.*epo"
    ):
        validate(compose_train("optim.epochs=0", "optim.batch_size=0"))


@pytest.fixture(scope="module")
def default(compose_train):
    return compose_train()


@given(
    seed=st.integers(0, 2**31),
    widths=st.none() | st.lists(st.integers(1, 4096), min_size=1, max_size=9),
    kind=st.sampled_from(config.HeadKind),
    lr=st.floats(1e-6, 10.0),
    resume=st.booleans(),
)
def test_a_config_survives_the_checkpoint(default, seed, widths, kind, lr, resume):
    cfg = copy.deepcopy(default)
    cfg.seed, cfg.resume = seed, resume
    cfg.head.granularities, cfg.head.kind, cfg.optim.base_lr = widths, kind, lr
    assert config.from_dict(config.to_dict(cfg)) == cfg
    assert OmegaConf.create(config.to_yaml(cfg)) == config.to_dict(cfg)


def test_a_stored_config_of_another_version_is_refused(compose_train):
    stored = config.to_dict(compose_train())
    stored["optim"]["beta"] = 1
    with pytest.raises(config.ConfigError, match="beta"):
        config.from_dict(stored)


def test_differences_name_keys_and_values(compose_train):
    old, new = compose_train(), compose_train("optim.epochs=7", "head=tied")
    assert config.differences(old, new) == [
        "head.kind: nested -> tied",
        f"optim.epochs: {old.optim.epochs} -> 7",
    ]
    assert config.differences(old, old) == []

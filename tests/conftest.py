"""Shared by all tests: composed configs, a tiny run, and what `--all` makes of skips."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from hydra import compose, initialize_config_dir

from mrl import config, stopping

CONFIGS = Path(__file__).parent.parent / "configs"

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter; it looks for this when it is first imported.
    os.environ["TRITON_INTERPRET"] = "1"
# The time of one example says more about the machine's other work than about the code.
hypothesis.settings.register_profile("mrl", deadline=None)
hypothesis.settings.load_profile("mrl")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    """Under ``scripts/test.sh --all`` a test that skips, for want of a component, fails."""
    report = yield
    if os.environ.get("MRL_TEST_ALL") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --all forbids: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def signals_stay_pytests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's main takes its process's signals for good, and a second one ends that process;
    called in a test, it would be this one. Processes that tests start are not touched.
    """
    monkeypatch.setattr(stopping, "_take_signals", lambda advice: stopping._Ending())


@pytest.fixture(scope="session")
def compose_train() -> Callable[..., config.TrainConfig]:
    """``compose_train("experiment=x", "seed=1")`` as train.py would see it."""
    config.register()

    def composed(*overrides: str) -> config.TrainConfig:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return config.parse(compose("train", overrides=list(overrides)))

    return composed


@pytest.fixture
def tiny_run(
    compose_train: Callable[..., config.TrainConfig], tmp_path: Path
) -> Callable[..., config.TrainConfig]:
    """A run of two epochs of four steps on synthetic images, with a network of 16 channels."""

    def made(*overrides: str) -> config.TrainConfig:
        return compose_train(
            "data=synthetic",
            "data.num_images=48",
            "data.holdout=16",
            "backbone.widths=[8,16]",
            "backbone.blocks=[1,1]",
            "head.granularities=[2,4,16]",
            "optim.epochs=2",
            "optim.batch_size=8",
            "optim.warmup_epochs=0.5",
            "optim.precision=fp32",
            f"run_dir={tmp_path}/run",
            *overrides,
        )

    return made

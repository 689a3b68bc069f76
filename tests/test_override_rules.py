"""Words of a command line that cannot be meant, and what they should have been."""

import pytest

from mrl.config import EvalConfig, TrainConfig
from mrl.override_rules import fault


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.epoch=4", "there is no key optim.epoch: did you mean optim.epochs?"),
        ("+optim.epoch=4", "there is no key optim.epoch: did you mean optim.epochs?"),
        ("++head.granularity=[8]", "did you mean head.granularities?"),
        ("~optim.epoch=4", "did you mean optim.epochs?"),
        ("epochs=4", "did you mean optim.epochs?"),
        ("lr=0.1", "did you mean optim.base_lr?"),
        ("otpim=adamw", "did you mean optim?"),
        ("experimnt=cifar10_mrl", "did you mean experiment?"),
        ("data.size=3", "did you mean data.image_size or data.train_sizes?"),
        ("sed=1,2", "did you mean seed?"),
        ("colour=red", "there is no key colour: see mrl/config.py"),
        ("head.granularities.0=4", "give head.granularities as a whole"),
        ("data.flip=2", "data.flip must be true or false, got 2"),
        ("data.os_cache=-1", "data.os_cache must be true or false, got -1"),
        ("backbone.blur_pool=true,3", "backbone.blur_pool must be true or false, got 3"),
        ("compile=0.5", "compile must be true or false, got 0.5"),
        ("optim.name=adamw", "optim=adamw brings its own"),
    ],
)
def test_refused(word, message):
    assert message in fault(["train.py", "seed=1", word], TrainConfig)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("evals.retrieval.shortlists=3", "did you mean evals.retrieval.shortlist?"),
        ("runs=outputs/a", "did you mean run?"),
        ("optim.epochs=3", "there is no key optim.epochs"),
        ("data.flip=7", "data.flip must be true or false, got 7"),
        ("evals=[knn,null]", "evals has null in its list"),
    ],
)
def test_refused_in_an_evaluation(word, message):
    assert message in fault(["eval.py", word], EvalConfig)


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=cifar10_mrl", "data=cifar10", "optim=adamw", "seed=0,1", "-m"],
        ["data.flip=true", "compile=1", "fsdp=no", "sync_bn=choice(on,off)"],
        ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=3", "--config-dir=x"],
        ["optim.name=adamw", "optim.base_lr=1e-3"],
        ["run_dir=a=b", "head.granularities=[2],[4]", "optim.epochs=oops", "=", "a b=3"],
    ],
)
def test_what_hydra_may_judge(words):
    assert fault(words, TrainConfig) is None

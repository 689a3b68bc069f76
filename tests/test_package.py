"""What `import mrl` brings along, and which module may import which."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPTIONAL = ["hydra", "omegaconf", "wandb", "ffcv", "matplotlib", "pandas", "timm", "torchvision"]
OPTIONAL += ["tensorboard", "tabulate", "safetensors", "onnx", "onnxruntime", "faiss", "pyarrow"]
USE = """
import sys, torch, mrl
head = mrl.NestedHead(16, 3, mrl.log_spaced(16, 2))
z = torch.randn(8, 16)
head.loss(z, torch.zeros(8, dtype=torch.int64))[0].backward()
mrl.nested_knn(z, z, [2, 16], k=2)
mrl.MatryoshkaLoss(lambda a: a.sum(), [2, 16])(mrl.truncate(z, 16))
loaded = [name for name in {optional} if name in sys.modules]
assert not loaded, loaded
print(mrl.__file__)
"""


def use_mrl(cwd, **env):
    code = USE.format(optional=OPTIONAL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_the_head_the_loss_and_the_search_import_nothing_optional():
    use_mrl(ROOT)


@pytest.mark.slow
def test_the_installed_package_is_whole(tmp_path):
    checkout = tmp_path / "checkout"  # building leaves files behind
    shutil.copytree(ROOT / "mrl", checkout / "mrl")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, checkout)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    install += ["--disable-pip-version-check", "--target", str(tmp_path / "site"), str(checkout)]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("pip cannot fetch setuptools, which builds the package")
    assert done.returncode == 0, done.stderr
    assert use_mrl(tmp_path, PYTHONPATH=str(tmp_path / "site")).is_relative_to(tmp_path)
    assert (tmp_path / "site" / "mrl" / "report" / "template.html").exists()


def imports_of(path):
    """Modules of this project that a file imports when it is imported (not in functions)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


FORBIDDEN = {
    "nesting.py": ["mrl."],
    "losses.py": ["mrl.heads", "mrl.model", "mrl.config", "mrl.data"],
    "heads.py": ["mrl.model", "mrl.config", "mrl.data"],
    "model.py": ["mrl.train_loop", "mrl.config", "mrl.data"],
    "checkpoint.py": ["mrl.train_loop", "mrl.config", "mrl.data"],
    "data": ["mrl.model", "mrl.heads", "mrl.train_loop", "mrl.evaluation"],
    "search": ["mrl.model", "mrl.heads", "mrl.train_loop", "mrl.data", "mrl.evaluation"],
    "evaluation": ["mrl.train_loop"],
    "report": ["mrl.train_loop", "mrl.model", "mrl.data", "torch"],
}


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_go_one_way(part):
    place = ROOT / "mrl" / part
    for path in place.glob("**/*.py") if place.is_dir() else [place]:
        for name in imports_of(path):
            assert not any(name.startswith(f) for f in FORBIDDEN[part]), f"{path}: imports {name}"


HYDRA = ("config.py", "command_line.py", "override_rules.py", "sweep.py")


def test_few_modules_know_hydra():
    for path in (ROOT / "mrl").glob("**/*.py"):
        knows = any(n.split(".")[0] in ("hydra", "omegaconf") for n in imports_of(path))
        assert not knows or path.name in HYDRA, path


def test_what_is_offered_is_there():
    import mrl

    for name in mrl.__all__:
        assert getattr(mrl, name).__name__ == name
    assert {"nested_knn", "load_model"} <= {*dir(mrl)}
    assert mrl.search.PrefixIndex  # a module that nobody has asked for by name
    with pytest.raises(AttributeError, match="nothing_of_ours"):
        _ = mrl.nothing_of_ours


@pytest.mark.parametrize("word", ["optim.epochs=0", "optim.epoch=3", "head.granularities=[x]"])
def test_a_config_is_refused_before_pytorch_loads(word):
    code = "import runpy, sys; sys.argv = ['train.py', sys.argv[1]]\n"
    code += "try: runpy.run_path('train.py', run_name='__main__')\n"
    code += "except SystemExit as end: print(end)\n"
    code += "assert not {'torch', 'timm'} & {*sys.modules}"
    done = subprocess.run([sys.executable, "-c", code, word], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr

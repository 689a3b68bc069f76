"""Whether two checkpoints hold the same state, bit for bit: all of a run but its config.

python scripts/compare_checkpoints.py outputs/one outputs/other

Exit code 0: the same; 1: not, and the first difference is printed; 2: one cannot be read.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# Run from a checkout without installing it, too.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mrl.checkpoint import CheckpointError, load_checkpoint


def differences(a: Any, b: Any, name: str = "") -> Iterator[str]:
    """A line for each entry in which two nested states differ."""
    if type(a) is not type(b):
        yield f"{name}: {type(a).__name__} against {type(b).__name__}"
    elif isinstance(a, torch.Tensor):
        yield from _tensor_difference(a, b, name)
    elif isinstance(a, dict):
        for key in sorted(a.keys() | b.keys(), key=str):
            inner = f"{name}.{key}".lstrip(".")
            if key in a and key in b:
                yield from differences(a[key], b[key], inner)
            else:
                yield f"{inner}: only in the {'first' if key in a else 'second'}"
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{name}: {len(a)} entries against {len(b)}"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, f"{name}[{i}]")
    elif a != b:
        yield f"{name}: {a} against {b}"


def _tensor_difference(a: torch.Tensor, b: torch.Tensor, name: str) -> Iterator[str]:
    if a.shape != b.shape or a.dtype != b.dtype:
        yield f"{name}: {a.dtype} {list(a.shape)} against {b.dtype} {list(b.shape)}"
        return
    # As bytes: NaN equals itself, and -0 is not 0.
    a_bytes, b_bytes = (t.contiguous().flatten().view(torch.uint8) for t in (a, b))
    if torch.equal(a_bytes, b_bytes):
        return
    largest = (a.double() - b.double()).abs().max().item()
    yield f"{name}: {(a != b).sum().item()} of {a.numel()} numbers differ, by up to {largest:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs=2, help="files or run directories")
    try:
        states = [load_checkpoint(path) for path in parser.parse_args().checkpoints]
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for state in states:
        del state["config"]  # it names the folder
    found = list(differences(*states))
    if found:
        print(f"{found[0]}\nthe checkpoints differ in {len(found)} entries")
        return 1
    print(f"the same, bit for bit, at step {states[0]['step']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

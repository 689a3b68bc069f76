"""Made-up rows for the report's tests: plausible numbers, no training."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

WIDTHS = (2, 4, 8, 16, 32, 64, 128)
BETWEEN = (3, 6, 12, 24, 48, 96)
LINEAR = {
    "FF": (83.0, 91.4, 92.6, 93.2, 93.5, 93.7, 93.8),
    "MRL": (89.6, 91.6, 92.7, 93.2, 93.4, 93.5, 93.6),
    "MRL-E": (88.4, 91.2, 92.5, 93.1, 93.3, 93.4, 93.5),
}


def row(**changes: object) -> dict[str, object]:
    """One row; `changes` replaces fields."""
    return {
        "run": "mrl/seed0",
        "experiment": "mrl",
        "method": "MRL",
        "seed": 0,
        "commit": "0123456789abcdef",
        "dataset": "fashion_mnist",
        "split": "test",
        "evaluator": "classify",
        "metric": "top1",
        "granularity": 8,
        "value": 90.0,
        "n": 10000,
    } | changes


def write_rows(path: Path, rows: Iterable[dict[str, object]]) -> Path:
    """A .jsonl file of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def write_study(root: Path, seeds: int = 3, methods: Iterable[str] = LINEAR, **fields: str) -> Path:
    """Run directories of a study: one FF run per width and seed, one run per seed of the others."""
    for method in methods:
        for seed in range(seeds):
            for widths in [(w,) for w in WIDTHS] if method == "FF" else [WIDTHS]:
                experiment = method.lower().replace("-", "")
                name = f"{experiment}/m{widths[0]}_seed{seed}"
                base = {"run": name, "experiment": experiment, "method": method, "seed": seed}
                write_rows(root / name / "rows.jsonl", _run_rows(base | fields, widths))
                config = f"name: {experiment}\nseed: {seed}\ngranularities: {list(widths)}\n"
                (root / name / "config.yaml").write_text(config, encoding="utf-8")
    return root


def _run_rows(base: dict[str, object], widths: Iterable[int]) -> Iterator[dict[str, object]]:
    method, seed = str(base["method"]), int(str(base["seed"]))
    for width in widths:
        value = LINEAR[method][WIDTHS.index(width)] + 0.1 * seed
        yield row(**base, granularity=width, value=value)
        yield row(**base, granularity=width, value=value - 1, evaluator="knn", metric="top1_k1")
    if method == "FF":
        return
    for place, width in enumerate(BETWEEN):
        value = sum(LINEAR[method][place : place + 2]) / 2 + 0.1 * seed
        fields = base | {"granularity": width, "evaluator": "interpolation"}
        yield row(**fields, value=value - 1, metric="top1_k1")
        if method == "MRL-E":
            yield row(**fields, value=value, metric="top1")

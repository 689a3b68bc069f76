"""Rows -> mean and spread over seeds for every series, panel and width.

A *section* is one (dataset, split); sections are never mixed. A *panel* is one (evaluator, metric),
where rows at widths that were not trained join the evaluator they extend. A *series* is one method,
or one experiment of it where several experiments measured the same thing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mrl.row_names import is_per_cent

RETRIEVAL = "retrieval"  # the evaluator whose rows are mostly a grid of searches
BASELINE = "FF"
METHODS = (BASELINE, "MRL", "MRL-E")
PLACE = ["evaluator", "metric", "granularity"]
DATASET_TITLES = {
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet-1K",
}


@dataclass(frozen=True, order=True)
class Panel:
    """What is measured: the evaluator and its metric."""

    evaluator: str
    metric: str

    @property
    def title(self) -> str:
        """For people: "Linear classification", "1-NN", or the raw names."""
        neighbours = re.fullmatch(r"top1_k(\d+)", self.metric)
        if self.evaluator == "classify" and self.metric == "top1":
            return "Linear classification"
        if self.evaluator == "knn" and neighbours:
            return f"{neighbours[1]}-NN"
        if self.evaluator == "truncation":
            return "Truncation" + (f", {neighbours[1]}-NN" if neighbours else "")
        if self.evaluator == RETRIEVAL:
            return "Retrieval"
        return f"{self.evaluator}, {self.metric}"

    @property
    def quantity(self) -> str:
        """What the numbers are: "top-1 accuracy", or the raw metric."""
        if self.metric.startswith("neighbours@"):
            return f"share of the {self.metric.split('@')[1]} nearest at full width"
        return "top-1 accuracy" if self.metric.startswith("top1") else self.metric


MAIN_PANELS = (Panel("classify", "top1"), Panel("knn", "top1_k1"))


@dataclass(frozen=True)
class Section:
    """One data set and split: its rows, and their summary (see `summarize`)."""

    dataset: str
    split: str
    rows: pd.DataFrame
    summary: pd.DataFrame

    @property
    def title(self) -> str:
        """For people: "Fashion-MNIST, test split"."""
        return f"{DATASET_TITLES.get(self.dataset, self.dataset)}, {self.split} split"

    @property
    def slug(self) -> str:
        """For file names and anchors."""
        return re.sub(r"[^A-Za-z0-9]+", "_", f"{self.dataset}_{self.split}").strip("_").lower()

    @property
    def panels(self) -> list[Panel]:
        """The panels that have rows: linear and 1-NN first.

        Costs, which are no per cent, and the grid of searches are none: of retrieval one panel
        compares single widths.
        """
        pairs = {Panel(*pair) for pair in _tuples(self.summary, "evaluator", "metric")}
        found = {p for p in pairs if is_per_cent(p.metric) and p.evaluator != RETRIEVAL}
        if self.retrieval_metric is not None:
            found.add(Panel(RETRIEVAL, self.retrieval_metric))
        return [p for p in MAIN_PANELS if p in found] + sorted(found - set(MAIN_PANELS))

    @property
    def retrieval_metric(self) -> str | None:
        """What searches are compared by: the paper's mAP at the smallest k, such as "mAP@10"."""
        lines = self.summary[self.summary["evaluator"] == RETRIEVAL]
        ks = [int(m[4:]) for m in lines["metric"] if re.fullmatch(r"mAP@\d+", m)]
        return f"mAP@{min(ks)}" if ks else None

    def panel(self, panel: Panel) -> pd.DataFrame:
        """The summary lines of one panel."""
        return select(self.summary, panel)


def select(summary: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    """The lines of one panel."""
    keep = (summary["evaluator"] == panel.evaluator) & (summary["metric"] == panel.metric)
    return summary[keep]


def split_sections(rows: pd.DataFrame) -> list[Section]:
    """One section per (dataset, split) among the rows, sorted by name."""
    return [
        Section(dataset, split, part, summarize(part))
        for (dataset, split), part in rows.groupby(["dataset", "split"])
    ]


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Statistics over seeds of the rows of one section.

    Returns:
        One line per (evaluator, metric, series, granularity) with `method`, `interpolated`,
        `mean`, `sd` (sample standard deviation, NaN for one seed), `low`, `high`, `num_seeds`,
        `difference` (mean minus the mean of FF, in points) and `difference_se` (standard error of
        that difference of means). The differences are NaN where FF is not there, is the series
        itself, or is several series.
    """
    rows = _drop_shadowed(label_rows(rows))
    groups = rows.groupby([*PLACE, "series", "method", "interpolated"], sort=False)["value"]
    summary = groups.agg(
        mean="mean", sd="std", low="min", high="max", num_seeds="count"
    ).reset_index()
    summary = _add_differences(summary)
    summary["order"] = [method_rank(m) for m in summary["method"]]
    summary = summary.sort_values([*PLACE[:2], "order", "series", "granularity"])
    return summary.drop(columns="order").reset_index(drop=True)


def label_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with `interpolated`, the evaluator that such rows extend, and `series`."""
    rows = rows.copy()
    rows["interpolated"] = rows["evaluator"] == "interpolation"
    is_knn = rows["metric"].str.contains("_k")
    extended = pd.Series(np.where(is_knn, "knn", "classify"), index=rows.index)
    rows["evaluator"] = rows["evaluator"].where(~rows["interpolated"], extended)
    rows["series"] = rows["method"]
    for method, part in rows.groupby("method"):
        for index, name in _names(str(method), part):
            rows.loc[index, "series"] = name
    return rows


def _names(method: str, part: pd.DataFrame) -> Iterator[tuple[pd.Index, str]]:
    """Series names within one method: its own name, unless that would average unlike runs.

    Several experiments may share a method as long as they measured different widths (FF is often
    one experiment per width). Two that measured the same thing are told apart by experiment; two
    runs of one experiment with the same seed (say, two learning rates) by run.
    """
    place = [*PLACE, "interpolated"]
    apart = part.groupby(place)["experiment"].nunique().max() > 1
    for experiment, rows in part.groupby("experiment"):
        if rows.duplicated([*place, "seed"]).any():
            for run, of_run in rows.groupby("run"):
                yield of_run.index, f"{method} ({run})"
        elif apart:
            yield rows.index, f"{method} ({experiment})"


def _drop_shadowed(rows: pd.DataFrame) -> pd.DataFrame:
    """Without interpolated rows at widths where the same series has a trained one."""
    trained = rows[~rows["interpolated"]]
    place = [*PLACE, "series"]
    known = set(_tuples(trained, *place))
    shadowed = [
        interpolated and tuple(key) in known
        for interpolated, *key in _tuples(rows, "interpolated", *place)
    ]
    return rows[~np.array(shadowed, dtype=bool)]


def _add_differences(summary: pd.DataFrame) -> pd.DataFrame:
    baseline = summary[summary["method"] == BASELINE]
    if baseline["series"].nunique() != 1:
        return summary.assign(difference=np.nan, difference_se=np.nan)
    renamed = baseline[[*PLACE, "mean", "sd", "num_seeds"]].rename(
        columns={"mean": "ff_mean", "sd": "ff_sd", "num_seeds": "ff_seeds"}
    )
    joined = summary.merge(renamed, on=PLACE, how="left")
    other = joined["method"] != BASELINE
    variance = joined["sd"] ** 2 / joined["num_seeds"] + joined["ff_sd"] ** 2 / joined["ff_seeds"]
    joined["difference"] = (joined["mean"] - joined["ff_mean"]).where(other)
    joined["difference_se"] = np.sqrt(variance).where(other)
    return joined.drop(columns=["ff_mean", "ff_sd", "ff_seeds"])


def series_of(summary: pd.DataFrame) -> list[str]:
    """The series of a summary: FF, MRL, MRL-E, then the rest by name."""
    pairs = set(_tuples(summary, "method", "series"))
    return [name for _, name in sorted(pairs, key=lambda pair: (method_rank(pair[0]), pair))]


def method_rank(method: str) -> int:
    """Place of a method in every list: FF, MRL, MRL-E, then all others."""
    return METHODS.index(method) if method in METHODS else len(METHODS)


def _tuples(frame: pd.DataFrame, *names: str) -> list[tuple]:
    return list(frame[list(names)].itertuples(index=False, name=None))

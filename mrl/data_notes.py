"""What a run notes of its data in each checkpoint, and what is held against it later.

A folder of pictures may have grown, lost files, or been exchanged between a run's start and the day
when it goes on or is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mrl.data import DataError, Pixels, Splits
from mrl.data.datasets import noted_pixels
from mrl.data.errors import some
from mrl.data.identity import identify, names_of
from mrl.initial_weights import pixels_of_weights

if TYPE_CHECKING:
    from mrl.config import TrainConfig

Noted = Mapping[str, Any]


def notes_of(splits: Splits, pixels: Pixels) -> dict[str, Any]:
    """Of the data that a run is trained on: lists, strings and numbers.

    ``classes`` and ``in_channels`` rebuild the model; ``holdout`` are the names of the files that
    were held out, below the data set's root, None where the images are in no files of their own.
    """
    return {
        "classes": list(splits.classes),
        "in_channels": splits.in_channels,
        "pixels": pixels.to_dict(),
        "num_images": len(splits.train),
        "content": identify(splits.train).content,
        "holdout": names_of(splits.holdout),
    }


def changes(noted: Noted, found: Noted, lost: list[str]) -> list[str]:
    """What has changed in the data since ``noted``, a sentence each; none of what was not noted.

    Args:
        lost: see :class:`mrl.data.Splits`.
    """
    said = []
    before, now = noted["classes"], found["classes"]
    if before != now:
        gone, new = sorted({*before} - {*now}), sorted({*now} - {*before})
        said.append(
            f"there are {len(now)} classes, not {len(before)} (gone: {some(gone)}; new: "
            f"{some(new)})"
        )
    if noted.get("content", found["content"]) != found["content"]:
        said.append(
            f"the training images are others: {noted['num_images']} then, {found['num_images']} "
            "now, by their names and sizes"
        )
    if lost:
        said.append(
            f"{len(lost)} of {len(noted['holdout'])} held-out images are gone: {some(lost)}"
        )
    return said


def noted_holdout(noted: Noted | None, count: int) -> Noted | None:
    """``noted``, unless another number of images is to be held out than were."""
    if noted is None or noted.get("holdout") is None or len(noted["holdout"]) == count:
        return noted
    return {**noted, "holdout": None}


def pick_pixels(cfg: TrainConfig, splits: Splits, noted: Noted | None) -> tuple[Pixels, str]:
    """How pictures become the network's input, and on whose word.

    The configuration's word goes first, then the run's own from when it began, that of the weights
    that it starts from, and the data set's.

    Raises:
        DataError: for another number of channels than the images have.
    """
    if noted is not None:
        pixels, word = noted_pixels(noted, cfg.data), "as the run began"
    elif (of_weights := pixels_of_weights(cfg.backbone)) is not None:
        pixels, word = of_weights[0].for_channels(splits.in_channels), f"as of {of_weights[1]}"
    else:
        pixels, word = splits.pixels, "of the data set"
    if (given := pixels.overridden(cfg.data)) != pixels:
        pixels, word = given, f"by the config; {word}: {pixels}"
    if len(pixels.mean) != splits.in_channels:
        raise DataError(
            f"data.mean={list(pixels.mean)} is of {len(pixels.mean)} channels, the images have "
            f"{splits.in_channels}"
        )
    return pixels, word

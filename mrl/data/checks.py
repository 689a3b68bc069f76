"""Rules over the data section of a config, before anything is read."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from mrl.data import synthetic
from mrl.data.errors import DataError
from mrl.data.pixels import INTERPOLATIONS

if TYPE_CHECKING:  # mrl.config needs Hydra; loading data does not
    from mrl.config import DataConfig


# Bytes of memory for each pixel of a side squared, of data sets that are kept there: images times
# channels, twice while they are resized; synthetic ones are drawn in float32.
_BYTES = {"fashion_mnist": 2 * 70_000, "cifar10": 2 * 3 * 60_000, "cifar100": 2 * 3 * 60_000}
_SYNTHETIC_BYTES = 3 * 12  # of an image


def check(cfg: DataConfig) -> None:
    """Refuse keys that this data set or loader would ignore, and values that cannot be used.

    Raises:
        DataError: naming the key, its value, and what to do.
    """
    _check_data_set(cfg)
    _check_loader(cfg)
    _check_sizes(cfg)
    _check_pixels(cfg)
    if cfg.rand_augment is not None:
        rand_augment(cfg.rand_augment, cfg.image_size, (0.5, 0.5, 0.5))


def rand_augment(
    policy: str, size: int, mean: tuple[float, ...]
) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment (Cubuk et al. 2020): PIL image -> PIL image, by Python's and NumPy's
    global generators.

    Args:
        policy: in timm's notation, such as ``rand-m9-mstd0.5-inc1``.
        size: side of the images in pixels, for the distance of shifts.
        mean: of each channel, 0..1, for the colour of what comes in.

    Raises:
        DataError: if timm does not understand the policy.
    """
    from timm.data.auto_augment import rand_augment_transform  # takes a second

    hparams = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(round(255 * value) for value in mean),
    }
    try:
        return rand_augment_transform(policy, hparams)
    except (AssertionError, ValueError, KeyError) as error:
        raise DataError(
            f"data.rand_augment={policy} is no policy that timm knows ({error!r}): use something "
            "like rand-m9-mstd0.5-inc1"
        ) from error


def _check_data_set(cfg: DataConfig) -> None:
    name = cfg.name.name
    if name != "synthetic" and (cfg.num_classes is not None or cfg.num_images is not None):
        raise DataError(f"data.num_classes and data.num_images are for synthetic data, not {name}")
    if name == "imagefolder":
        if cfg.pad:
            raise DataError(
                f"data.pad={cfg.pad} has no effect on imagefolder, which is cropped: use 0"
            )
        return
    if name == "synthetic":
        synthetic.check_counts(*_synthetic_counts(cfg))
    if cfg.pad >= cfg.image_size:
        raise DataError(
            f"data.pad={cfg.pad} could shift images of data.image_size={cfg.image_size} out of "
            "sight: it must be smaller"
        )
    _check_memory(cfg)
    for key, neutral in (
        ("classes", None),
        ("train_sizes", None),
        ("ramp_epochs", None),
        ("rand_augment", None),
        ("crop_ratio", None),
        ("interpolation", None),
    ):
        value = getattr(cfg, key)
        if value != neutral:
            raise DataError(f"data.{key}={value} is for data.name=imagefolder, not {name}")
    if cfg.loader.name != "torch" or cfg.on_corrupt.name != "fatal":
        raise DataError(
            f"data.loader={cfg.loader.name} and data.on_corrupt={cfg.on_corrupt.name} are for "
            f"data.name=imagefolder: {name} is kept in memory, use torch and fatal"
        )


def _synthetic_counts(cfg: DataConfig) -> tuple[int, int]:
    """Classes, and images of train."""
    classes, images = cfg.num_classes, cfg.num_images
    return (
        synthetic.NUM_CLASSES if classes is None else classes,
        synthetic.NUM_IMAGES if images is None else images,
    )


def _check_memory(cfg: DataConfig) -> None:
    """Refuse images that cannot all be kept: the system would end the process without a word."""
    synthetic_bytes = _synthetic_counts(cfg)[1] * _SYNTHETIC_BYTES
    needed = _BYTES.get(cfg.name.name, synthetic_bytes) * cfg.image_size**2
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise DataError(
            f"{cfg.name.name} with data.image_size={cfg.image_size} takes {needed / 2**30:.0f} GiB "
            f"of memory, and this machine has {there / 2**30:.0f}: use smaller images, or fewer"
        )


def _check_loader(cfg: DataConfig) -> None:
    if cfg.loader.name == "torch":
        if cfg.quasi_random or not cfg.os_cache:
            raise DataError(
                f"data.quasi_random={cfg.quasi_random} and data.os_cache={cfg.os_cache} are for "
                "data.loader=ffcv: leave them at false and true"
            )
        return
    if cfg.on_corrupt.name != "fatal":
        raise DataError(
            "data.on_corrupt=skip has no effect with data.loader=ffcv: pictures are decoded when "
            "the file is made, leave corrupt ones out there (scripts/write_ffcv.py --skip-corrupt)"
        )
    if cfg.rand_augment is not None:
        raise DataError(f"data.rand_augment={cfg.rand_augment} needs data.loader=torch")


def _check_sizes(cfg: DataConfig) -> None:
    sizes, ramp = cfg.train_sizes, cfg.ramp_epochs
    if (sizes is None) != (ramp is None):
        raise DataError(
            f"data.train_sizes={sizes} and data.ramp_epochs={ramp} need each other: give both"
        )
    if sizes is None or ramp is None:
        return
    if len(sizes) != 2 or min(sizes) < 1:
        raise DataError(f"data.train_sizes must be two sizes in pixels, got {sizes}")
    if len(ramp) != 2 or not 0 <= ramp[0] <= ramp[1]:
        raise DataError(f"data.ramp_epochs must be two epochs, the first not later, got {ramp}")


def _check_pixels(cfg: DataConfig) -> None:
    if (cfg.mean is None) != (cfg.std is None) or len(cfg.mean or ()) != len(cfg.std or ()):
        raise DataError(
            f"data.mean={cfg.mean} and data.std={cfg.std} need each other: one of each for every "
            "channel"
        )
    if not all(0 < value < math.inf for value in cfg.std or ()):
        raise DataError(f"data.std must be positive, of pixels scaled to 0..1, got {cfg.std}")
    if not all(map(math.isfinite, cfg.mean or ())):
        raise DataError(f"data.mean must be finite, of pixels scaled to 0..1, got {cfg.mean}")
    if cfg.crop_ratio is not None and not 0 < cfg.crop_ratio <= 1:
        raise DataError(f"data.crop_ratio must lie in (0, 1], got {cfg.crop_ratio}")
    if cfg.interpolation not in (None, *INTERPOLATIONS):
        raise DataError(
            f"data.interpolation must be one of {', '.join(INTERPOLATIONS)}, "
            f"got {cfg.interpolation}"
        )
    if cfg.interpolation is not None and cfg.loader.name == "ffcv":
        raise DataError(
            f"data.interpolation={cfg.interpolation} needs data.loader=torch: FFCV averages areas"
        )

"""Which part of a picture is seen, and whether it is mirrored: the same in every loader.

A crop is a function of (seed, epoch, index of the image) and of the picture's size alone: it does
not depend on workers, ranks, the loader, or where in an epoch a run was resumed.

Shapes: N images. A box is (top, left, height, width) in pixels.
"""

import numpy as np

from mrl.data.batches import mix

AREA = (0.08, 1.0)  # share of the picture's area; ImageNet's usual range
RATIO = 4 / 3  # widest and, inverted, narrowest crop: width over height
ATTEMPTS = 10  # to draw a box that fits into the picture
EVAL_SHARE = 224 / 256  # of the shorter side, in the central square of evaluation
DRAWS = 2 * ATTEMPTS + 3  # numbers for each image: area and ratio of each attempt, place, mirror


def uniforms(key: tuple[int, ...], indices_N: np.ndarray, count: int) -> np.ndarray:
    """Float64 (N, count) in [0, 1): row i depends on ``key`` and ``indices_N[i]`` alone.

    The splitmix64 sequence (Steele, Lea and Flood 2014), read at the places that the indices say.
    """
    first = indices_N.astype(np.uint64)[:, None] * np.uint64(count)
    places: np.ndarray = first + np.arange(1, count + 1, dtype=np.uint64)
    bits: np.ndarray = places * np.uint64(0x9E3779B97F4A7C15) + np.uint64(mix(*key))
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)) * 2.0**-53


def draw_crops(
    heights_N: np.ndarray,
    widths_N: np.ndarray,
    indices_N: np.ndarray,
    *,
    seed: int,
    epoch: int,
    flip: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """(boxes int64 (N, 4), mirrored bool (N,)): random areas and shapes, as torchvision draws them.

    The first of ten boxes that fits the picture, or else the largest central one whose ratio is in
    range.
    """
    draws = uniforms((seed, epoch), indices_N, DRAWS)
    heights, widths = heights_N.astype(np.int64), widths_N.astype(np.int64)
    area = AREA[0] + (AREA[1] - AREA[0]) * draws[:, :ATTEMPTS]
    ratio = np.exp(np.log(RATIO) * (2 * draws[:, ATTEMPTS : 2 * ATTEMPTS] - 1))
    pixels = area * (heights * widths)[:, None]
    high, wide = np.rint(np.sqrt(pixels / ratio)), np.rint(np.sqrt(pixels * ratio))
    fits = (high >= 1) & (high <= heights[:, None]) & (wide >= 1) & (wide <= widths[:, None])
    row, first = np.arange(len(draws)), fits.argmax(1)
    found = fits[row, first]
    high = np.where(found, high[row, first], np.minimum(heights, np.rint(widths * RATIO)))
    wide = np.where(found, wide[row, first], np.minimum(widths, np.rint(heights * RATIO)))
    down, right = np.where(found, draws[:, -3:-1].T, 0.5)
    top, left = down * (heights - high + found), right * (widths - wide + found)
    boxes = np.stack([top, left, high, wide], axis=1).astype(np.int64)
    return boxes, (draws[:, -1] < 0.5) & flip


def central_boxes(
    heights_N: np.ndarray, widths_N: np.ndarray, crop_ratio: float = EVAL_SHARE
) -> np.ndarray:
    """int64 (N, 4): the central square that evaluation sees, ``crop_ratio`` of the shorter side."""
    heights, widths = heights_N.astype(np.int64), widths_N.astype(np.int64)
    side = np.maximum((np.minimum(heights, widths) * crop_ratio).astype(np.int64), 1)
    return np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)

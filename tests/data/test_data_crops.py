"""Crops and sizes of training images: functions of (seed, epoch, index), as torchvision draws."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from mrl.data.crops import central_boxes, draw_crops, uniforms
from mrl.data.progressive import train_size
from mrl.data.torch_loader import eval_transform


def drawn(
    heights: np.ndarray, widths: np.ndarray, indices: np.ndarray, **changes: int
) -> tuple[np.ndarray, np.ndarray]:
    return draw_crops(heights, widths, indices, **{"seed": 0, "epoch": 0, "flip": True} | changes)


def test_uniforms_depend_on_key_and_index_alone() -> None:
    whole = uniforms((3, 4), np.arange(50), 5)
    assert (uniforms((3, 4), np.array([7, 49, 7]), 5) == whole[[7, 49, 7]]).all()
    assert not (uniforms((4, 3), np.arange(50), 5) == whole).any()


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    draws = uniforms((0,), np.arange(20_000), 8)
    assert draws.min() >= 0 and draws.max() < 1
    share = np.histogram(draws, bins=20, range=(0, 1))[0] / draws.size
    assert np.abs(share - 0.05).max() < 0.002
    correlation = np.corrcoef(np.vstack([draws[:-1].T, draws[1:].T])) - np.eye(16)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_crops_do_not_depend_on_their_company() -> None:
    random = np.random.default_rng(0)
    heights, widths = random.integers(20, 500, (2, 64))
    boxes, mirrored = drawn(heights, widths, np.arange(64))
    some = np.array([5, 60, 33])
    again, mirrored_again = drawn(heights[some], widths[some], some)
    assert (boxes[some] == again).all()
    assert (mirrored[some] == mirrored_again).all()
    for changes in ({"epoch": 1}, {"seed": 1}):
        assert (drawn(heights, widths, np.arange(64), **changes)[0] != boxes).any(1).mean() > 0.9
    assert not drawn(heights, widths, np.arange(64), flip=False)[1].any()


@pytest.mark.parametrize("size", [(375, 500), (500, 200), (60, 600), (1, 1), (1, 40)])
def test_crops_lie_in_the_picture(size: tuple[int, int]) -> None:
    heights, widths = np.full((2, 500), np.array(size)[:, None])
    boxes, mirrored = drawn(heights, widths, np.arange(500))
    top, left, high, wide = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (high >= 1).all() and (wide >= 1).all()
    assert (top + high <= size[0]).all() and (left + wide <= size[1]).all()
    assert 0.4 < mirrored.mean() < 0.6


@pytest.mark.parametrize("size", [(375, 500), (100, 300), (60, 600)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    count = 3000
    boxes, _ = drawn(*np.full((2, count), np.array(size)[:, None]), np.arange(count))
    torch.manual_seed(0)
    picture = Image.new("RGB", size[::-1])
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(count)]
    )
    for ours, other in zip(boxes.T, theirs.T, strict=True):
        quantiles = np.linspace(0.05, 0.95, 10)
        difference = np.quantile(ours, quantiles) - np.quantile(other, quantiles)
        # A quantile of 3000 draws has a standard error of about 1 % of the range.
        assert np.abs(difference).max() <= 0.05 * max(size)


def test_central_boxes() -> None:
    boxes = central_boxes(np.array([256, 500, 1]), np.array([512, 256, 9]))
    assert boxes.tolist() == [[16, 144, 224, 224], [138, 16, 224, 224], [0, 4, 1, 1]]
    whole = central_boxes(np.array([256, 500]), np.array([512, 256]), crop_ratio=1)
    assert whole.tolist() == [[0, 128, 256, 256], [122, 0, 256, 256]]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluations_crop_by_ratio_and_interpolation(interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    whole = picture.resize((30, 20), Image.Resampling[interpolation.upper()])
    for crop_ratio, (left, top, right, bottom) in ((1.0, (5, 0, 25, 20)), (0.8, (7, 2, 23, 18))):
        found = eval_transform(right - left, crop_ratio, interpolation)(picture)
        assert found.tobytes() == whole.crop((left, top, right, bottom)).tobytes()


@pytest.mark.parametrize(
    ("epoch", "size"),
    [(0, 160), (29, 160), (30, 160), (31, 160), (32, 192), (33, 192), (34, 192), (39, 192)],
)
def test_the_papers_sizes(epoch: int, size: int) -> None:
    ramp = {"train_sizes": [160, 192], "ramp_epochs": [29, 34]}
    assert train_size(epoch, image_size=224, **ramp) == size


def test_sizes_between_ends_that_are_no_multiples_of_32() -> None:
    ramp = {"train_sizes": [24, 100], "ramp_epochs": [1, 5]}
    sizes = [train_size(epoch, image_size=1, **ramp) for epoch in range(7)]
    assert sizes == [24, 24, 32, 64, 96, 100, 100]
    step = {"train_sizes": [24, 100], "ramp_epochs": [2, 2]}
    assert [train_size(e, image_size=1, **step) for e in (2, 3)] == [24, 100]
    assert train_size(9, image_size=48, train_sizes=None, ramp_epochs=None) == 48

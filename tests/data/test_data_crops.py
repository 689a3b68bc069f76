"""Crops and sizes of training images: functions of (seed, epoch, index), as torchvision draws."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from mrl.data import torch_loader
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


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("interpolation", "crop_ratio"), [("bilinear", 224 / 256), ("bicubic", 1)])
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (1, 1), (2, 9), (31, 1), (224, 224)])
def test_evaluation_sees_what_torchvision_shows(
    size: tuple[int, int], interpolation: str, crop_ratio: float
) -> None:
    for side in (1, 16, 65):
        resize = transforms.Resize(round(side / crop_ratio), InterpolationMode(interpolation))
        expected = transforms.CenterCrop(side)(resize(noise(*size)))
        found = eval_transform(side, crop_ratio, interpolation)(noise(*size))
        assert (found.size, found.tobytes()) == (expected.size, expected.tobytes())


@pytest.mark.parametrize("size", [(40, 9000), (9000, 7), (1, 300)])
def test_strips_are_cut_and_then_resized(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.asarray(eval_transform(64)(noise(*size))).astype(int)
    monkeypatch.setattr(torch_loader, "LARGEST_RESIZED", 0)
    assert np.abs(np.asarray(eval_transform(64)(noise(*size))) - whole).max() <= 1


@pytest.mark.parametrize("size", [(1, 4_000_000), (4_000_000, 1)])
def test_a_strip_takes_no_more_memory_than_its_square(size: tuple[int, int]) -> None:
    """Resized as a whole it would have 262 thousand million pixels."""
    found = eval_transform(224)(Image.new("RGB", size, (9, 8, 7)))
    assert found.size == (224, 224) and found.getcolors() == [(224 * 224, (9, 8, 7))]


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

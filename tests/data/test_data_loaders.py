"""Batches: what every rank sees at every step, and nothing else, decides what they hold."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mrl.config import DataConfig, LoaderName
from mrl.data import DataError, ImageDataset, Loader, Pixels, build_loader, load_splits
from mrl.data.batches import BatchPlan, generator
from mrl.data.memory_loader import augment, normalise

MakeConfig = Callable[..., DataConfig]
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(params=["memory", "files", "ffcv"])
def loader(request: pytest.FixtureRequest, data_config: MakeConfig) -> Callable[..., Loader]:
    """``loader(train=True, seed=0, ...)`` over some 10 images: in memory, JPEG files, a .beton."""
    if request.param == "memory":
        cfg = data_config(num_classes=2, num_images=10, holdout=0, pad=2)
    else:
        root = request.getfixturevalue("pictures" if request.param == "files" else "betons")
        cfg = data_config("imagefolder", root=str(root), image_size=16, holdout=0)
        cfg.loader = LoaderName["torch" if request.param == "files" else "ffcv"]
    splits = load_splits(cfg)

    def make(**changes: Any) -> Loader:
        values = {"batch_size": 4, "train": True, "seed": 0} | changes
        return build_loader(splits.train, cfg=cfg, pixels=splits.pixels, **values)

    return make


def same(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_batches_depend_on_seed_epoch_and_step_alone(loader: Callable[..., Loader]) -> None:
    torch.manual_seed(1)
    first = list(loader().batches(epoch=3))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(first, list(loader().batches(epoch=3)))
    assert torch.equal(before, torch.get_rng_state())  # a resumed run draws what it would have
    assert not same(first, list(loader().batches(epoch=4)))
    assert not same(first, list(loader(seed=1).batches(epoch=3)))


def test_start_skips_steps(loader: Callable[..., Loader]) -> None:
    one = loader(batch_size=2)
    whole = list(one.batches(epoch=1))
    assert len(whole) == one.steps == 5
    for start in range(6):
        assert same(whole[start:], list(one.batches(epoch=1, start=start)))


def test_ranks_together_see_what_one_process_sees(loader: Callable[..., Loader]) -> None:
    whole = list(loader().batches(epoch=0))
    ranks = [list(loader(rank=r, world_size=2).batches(epoch=0)) for r in range(2)]
    assert same(whole, [(torch.cat(i), torch.cat(j)) for i, j in _joined(ranks)])


def _joined(ranks: list[Batches]) -> list[tuple[list[Tensor], list[Tensor]]]:
    return [tuple(map(list, zip(*step, strict=True))) for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 11])
def test_evaluation_sees_every_image_once_in_order(
    loader: Callable[..., Loader], world_size: int
) -> None:
    whole_images, whole_labels = next(loader(train=False, batch_size=10).batches(epoch=0))
    ranks = [
        loader(train=False, batch_size=4, rank=r, world_size=world_size) for r in range(world_size)
    ]
    batches = [batch for one in ranks for batch in one.batches(epoch=0)]
    assert len(batches) == sum(one.steps for one in ranks)
    assert torch.equal(whole_images, torch.cat([images for images, _ in batches]))
    assert torch.equal(whole_labels, torch.cat([labels for _, labels in batches]))
    assert same(batches, [b for one in ranks for b in one.batches(epoch=7)])


def test_types_and_shapes(loader: Callable[..., Loader]) -> None:
    images, labels = next(loader().batches(epoch=0))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.shape[:2] == (4, 3)
    assert labels.shape == (4,)


@given(
    num_images=st.integers(1, 60),
    world_size=st.integers(1, 5),
    per_rank=st.integers(1, 7),
    train=st.booleans(),
)
def test_plan_covers_the_data_set(
    num_images: int, world_size: int, per_rank: int, train: bool
) -> None:
    batch_size = per_rank * world_size
    if train and batch_size > num_images:
        return
    seen: list[int] = []
    for rank in range(world_size):
        plan = BatchPlan(
            num_images=num_images,
            batch_size=batch_size,
            train=train,
            seed=0,
            rank=rank,
            world_size=world_size,
        )
        steps = [indices.tolist() for _, indices in plan.indices(epoch=0)]
        assert len(steps) == plan.steps
        seen += [i for step in steps for i in step]
    if train:
        assert len(seen) == len(set(seen)) == num_images // batch_size * batch_size
    else:
        assert seen == list(range(num_images))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 11}, "batch of 11 is larger than the training set of 10"),
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"world_size": 3}, "batch of 4 cannot be split evenly over 3 ranks"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not one of 2 ranks"),
    ],
)
def test_impossible_batches_are_refused(
    loader: Callable[..., Loader], changes: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loader(**changes)


def test_empty_data_set_is_refused(data_config: MakeConfig) -> None:
    empty = ImageDataset(
        images=torch.zeros(0, 3, 8, 8, dtype=torch.uint8),
        labels=torch.zeros(0, dtype=torch.int64),
        classes=["a"],
    )
    with pytest.raises(DataError, match="data set is empty .*data.holdout is 0"):
        build_loader(
            empty,
            cfg=data_config(),
            pixels=Pixels(mean=(0,), std=(1,)),
            batch_size=4,
            train=False,
            seed=0,
        )


def test_generator_keys_do_not_collide() -> None:
    keys = [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (0, 1, 0), (0, 0, 1), (2**63, 5)]
    draws = {int(torch.randint(2**62, (1,), generator=generator(*key))) for key in keys}
    assert len(draws) == len(keys)


@pytest.mark.parametrize("pad", [0, 2])
def test_augment_equals_a_loop_over_pixels(pad: int) -> None:
    images = torch.randint(1, 256, (7, 2, 5, 6), dtype=torch.uint8)
    flips = torch.rand(7) < 0.5
    shifts = torch.randint(-pad, pad + 1, (7, 2))
    expected = torch.zeros_like(images)
    for n, (down, right) in enumerate(shifts.tolist()):
        for y in range(5):
            for x in range(6):
                to_y, to_x = y + down, x + right
                if 0 <= to_y < 5 and 0 <= to_x < 6:
                    expected[n, :, to_y, 5 - to_x if flips[n] else to_x] = images[n, :, y, x]
    assert torch.equal(augment(images, flips, shifts, pad=pad), expected)


def test_memory_loader_flips_and_shifts_as_told(data_config: MakeConfig) -> None:
    splits = load_splits(data_config(num_classes=2, num_images=64, holdout=0))
    plain = {image.numpy().tobytes() for image in splits.train.images}

    def share_unchanged(**changes: Any) -> float:
        cfg = data_config(**changes)
        one = build_loader(
            splits.train,
            cfg=cfg,
            pixels=Pixels(mean=(0,) * 3, std=(1,) * 3),
            batch_size=64,
            train=True,
            seed=0,
        )
        images = (next(one.batches(epoch=0))[0] * 255).round().to(torch.uint8)
        return sum(image.numpy().tobytes() in plain for image in images) / 64

    assert share_unchanged(flip=False) == 1
    assert 0.25 < share_unchanged(flip=True) < 0.75
    assert share_unchanged(flip=False, pad=3) < 0.15  # 1 in 49 is not moved


def test_two_epochs_show_each_image_both_ways_round(data_config: MakeConfig) -> None:
    splits = load_splits(data_config(num_classes=2, num_images=64, holdout=0))
    loader = build_loader(
        splits.train,
        cfg=data_config(flip=True),
        pixels=Pixels(mean=(0,) * 3, std=(1,) * 3),
        batch_size=16,
        train=True,
        seed=0,
    )
    seen = [
        (image * 255).round().to(torch.uint8).numpy().tobytes()
        for epoch in (2, 3)
        for images, _ in loader.batches(epoch)
        for image in images
    ]
    images = splits.train.images
    assert isinstance(images, torch.Tensor)
    both = [image.numpy().tobytes() for image in [*images, *images.flip(3).contiguous()]]
    assert sorted(seen) == sorted(both)


def test_normalise() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    out = normalise(images, mean=(0.25, 0.5), std=(0.5, 0.25))
    assert torch.allclose(out.flatten(), torch.tensor([-0.5, 2.0]))


def folder_loader(data_config: MakeConfig, pictures: Path, **changes: Any) -> Loader:
    cfg = data_config("imagefolder", root=str(pictures), image_size=16, holdout=0, **changes)
    splits = load_splits(cfg)
    return build_loader(
        splits.train,
        cfg=cfg,
        pixels=splits.pixels,
        batch_size=2,
        train=True,
        seed=0,
    )


def test_worker_processes_change_nothing(data_config: MakeConfig, pictures: Path) -> None:
    alone = folder_loader(data_config, pictures)
    helped = folder_loader(data_config, pictures, workers=2)
    assert same(list(alone.batches(epoch=0)), list(helped.batches(epoch=0)))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"no picture", None])
def test_corrupt_picture_is_named(
    data_config: MakeConfig, pictures: Path, content: bytes | None, workers: int
) -> None:
    path = pictures / "train" / "dog" / "2.jpg"
    path.write_bytes(path.read_bytes()[:-600] if content is None else content)
    one = folder_loader(data_config, pictures, workers=workers)
    with pytest.raises(DataError, match=f"cannot decode the image {path}"):
        list(one.batches(epoch=0))


def test_leaving_an_epoch_early_is_clean(data_config: MakeConfig, pictures: Path) -> None:
    one = folder_loader(data_config, pictures, workers=1)
    first = list(islice(one.batches(epoch=0), 1))
    assert same(first, list(islice(one.batches(epoch=0), 1)))

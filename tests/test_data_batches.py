"""The order and augmentation of training samples: pure functions of seeds and step, the same at every world size."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import functional as vision

from lth_scale.data import Batches, Dataset, Split, accumulation
from lth_scale.data.augment import crop_flip, draws
from lth_scale.data.preparing import moments
from lth_scale.errors import UserError
from lth_scale.streams import numpy_generator

TRAIN, BATCH, CLASSES = 50, 8, 5


def make(channels: int = 3, train: int = TRAIN) -> Dataset:
    rng = np.random.default_rng(0)
    shape = (channels, 8, 6)

    def split(count: int) -> Split:
        images = torch.from_numpy(rng.integers(0, 256, (count, *shape), np.uint8))
        return Split(images, torch.from_numpy(rng.integers(0, CLASSES, count)))

    first = split(train)
    mean, std = moments(first.images.numpy())
    return Dataset("made", CLASSES, shape, first, split(7), split(9), mean, std, "0" * 64)


DATASET = make()


def batches(dataset: Dataset = DATASET, **changes: object) -> Batches:
    settings = {
        "batch_size": BATCH,
        "micro_batch": 0,
        "start": 0,
        "stop": 13,
        "order": 3,
        "augment_seed": 5,
        "augment": "none",
        "noise": 0,
    }
    return Batches(dataset, **(settings | changes))  # type: ignore[arg-type]


def same(left: object, right: object) -> bool:
    return all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(left, right, strict=True))  # type: ignore


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_the_order_is_the_streams_permutation(epoch: int) -> None:
    expected = numpy_generator(3, "order", 2, epoch).permutation(TRAIN)
    steps = TRAIN // BATCH
    served = batches(noise=2)
    found = torch.cat([served.global_batch(epoch * steps + position) for position in range(steps)])
    assert found.tolist() == expected[: steps * BATCH].tolist()


@given(order=st.integers(0, 2**31), noise=st.integers(0, 50), epoch=st.integers(0, 1000), size=st.integers(1, TRAIN))
def test_an_epoch_serves_each_sample_at_most_once(order: int, noise: int, epoch: int, size: int) -> None:
    served = batches(order=order, noise=noise, batch_size=size)
    steps = served.steps_per_epoch
    ids = torch.cat([served.global_batch(epoch * steps + position) for position in range(steps)])
    assert len(ids) == len(set(ids.tolist())) == TRAIN - TRAIN % size
    assert int(ids.min()) >= 0 and int(ids.max()) < TRAIN


def test_the_dropped_remainder_is_another_one_each_epoch() -> None:
    served = batches()
    epochs = [torch.cat([served.global_batch(6 * epoch + position) for position in range(6)]) for epoch in range(8)]
    assert len({frozenset(range(TRAIN)) - frozenset(ids.tolist()) for ids in epochs}) > 1


def test_batches_are_the_normalised_images_of_their_ids() -> None:
    served = batches()
    for step, (x, y) in enumerate(served):
        ids = served.global_batch(step)
        images = DATASET.train.images[ids].double() / 255
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (DATASET.mean, DATASET.std))
        torch.testing.assert_close(x, ((images - mean) / std).float(), rtol=1e-5, atol=1e-6)
        assert x.dtype == torch.float32 and x.is_contiguous()
        assert torch.equal(y, DATASET.train.labels[ids])


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_large_sets_are_normalised_by_the_batch_with_the_same_bits(
    augment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = list(batches(augment=augment))
    monkeypatch.setattr("lth_scale.data.dataset.FLOAT_LIMIT", 0)
    large = make()
    assert large.normalised_train is None
    assert same(small, list(batches(large, augment=augment)))


def test_the_train_split_becomes_mean_0_and_deviation_1() -> None:
    x = DATASET.normalise(DATASET.train.images).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a_constant_channel_stays_finite() -> None:
    mean, std = moments(np.full((4, 1, 2, 2), 51, np.uint8))
    assert mean == pytest.approx((0.2,)) and std == (1.0,)


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
@pytest.mark.parametrize(("world", "micro"), [(1, 0), (1, 2), (2, 0), (2, 2), (4, 1), (4, 2), (8, 1)])
def test_global_batches_are_the_same_at_every_world_size(world: int, micro: int, augment: str) -> None:
    whole = list(batches(augment=augment))
    ranks = [list(batches(augment=augment, world=world, micro_batch=micro, rank=rank)) for rank in range(world)]
    parts = accumulation(BATCH, micro, world)
    size = BATCH // world // parts
    for step, (x, y) in enumerate(whole):
        pieces = [piece for rank in ranks for piece in rank[step * parts : (step + 1) * parts]]
        assert all(len(labels) == size for _, labels in pieces)
        assert torch.equal(torch.cat([images for images, _ in pieces]), x)
        assert torch.equal(torch.cat([labels for _, labels in pieces]), y)


@pytest.mark.parametrize(("world", "micro"), [(1, 0), (1, 4), (2, 2), (4, 1)])
def test_the_length_counts_micro_batches(world: int, micro: int) -> None:
    served = batches(world=world, micro_batch=micro, start=3, stop=9)
    assert len(served) == len(list(served)) == 6 * accumulation(BATCH, micro, world)


@given(start=st.integers(0, 20), augment=st.sampled_from(["none", "crop_flip"]), micro=st.sampled_from([0, 2]))
def test_resuming_at_any_step_continues_the_same_sequence(start: int, augment: str, micro: int) -> None:
    whole = batches(augment=augment, micro_batch=micro, stop=20)
    rest = batches(augment=augment, micro_batch=micro, start=start, stop=20)
    assert same(islice(whole, len(whole) - len(rest), None), rest)


@pytest.mark.parametrize("change", [{"order": 4}, {"noise": 1}])
def test_another_seed_or_noise_is_another_order(change: dict[str, int]) -> None:
    assert batches().global_batch(0).tolist() != batches(**change).global_batch(0).tolist()
    assert batches().global_batch(0).tolist() == batches(augment_seed=9).global_batch(0).tolist()


@pytest.mark.parametrize(("change", "differs"), [({"augment_seed": 6}, True), ({"noise": 1}, True), ({}, False)])
def test_augmentation_follows_its_own_seed_and_noise(change: dict[str, int], differs: bool) -> None:
    ids = torch.arange(TRAIN)
    seed, noise = change.get("augment_seed", 5), change.get("noise", 0)
    one, other = (crop_flip(DATASET.train.images, ids, table) for table in ((5, 0, 0, TRAIN), (seed, noise, 0, TRAIN)))
    assert torch.equal(one, other) is not differs


def slowly(image: torch.Tensor, draw: list[int]) -> torch.Tensor:
    """One image as torchvision does it."""
    top, left, mirrored = draw
    crop = vision.crop(vision.pad(image, [4, 4, 4, 4]), top, left, *image.shape[1:])
    return vision.hflip(crop) if mirrored else crop


@given(epoch=st.integers(0, 100), ids=st.lists(st.integers(0, TRAIN - 1), min_size=1, max_size=12))
def test_crop_flip_is_the_per_image_transform(epoch: int, ids: list[int]) -> None:
    rows = torch.tensor(ids)
    table = (5, 1, epoch, TRAIN)
    drawn = draws(*table).tolist()
    expected = torch.stack([slowly(DATASET.train.images[row], drawn[row]) for row in ids])
    assert torch.equal(crop_flip(DATASET.train.images[rows], rows, table), expected)


def test_draws_cover_every_crop_and_mirror_half() -> None:
    drawn = draws(0, 0, 0, 8100)
    corners = torch.bincount(drawn[:, 0] * 9 + drawn[:, 1], minlength=81)
    assert len(corners) == 81 and int(corners.min()) > 50
    assert abs(float(drawn[:, 2].float().mean()) - 0.5) < 0.03


def test_the_batch_has_its_own_augmentation_per_epoch() -> None:
    served = batches(augment="crop_flip", batch_size=TRAIN, stop=2)
    first, second = (x[torch.argsort(served.global_batch(step))] for step, (x, _) in enumerate(served))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [0, TRAIN + 1])
def test_a_batch_larger_than_the_train_split_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=rf"train\.batch_size={size} .*1\.\.50"):
        batches(batch_size=size)


def test_uneven_batches_are_refused_with_the_valid_world_sizes() -> None:
    message = r"train\.batch_size=12 .*train\.micro_batch=2 x 4 .*devices: 1, 2, 3, 6$"
    with pytest.raises(UserError, match=message):
        accumulation(12, 2, 4)
    with pytest.raises(UserError, match="none; micro_batch must divide batch_size"):
        accumulation(12, 5, 1)
    assert [accumulation(12, 2, world) for world in (1, 2, 3, 6)] == [6, 3, 2, 1]
    assert [accumulation(12, 0, world) for world in (1, 2, 12)] == [1, 1, 1]

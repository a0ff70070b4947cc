"""The order of streamed samples: each at most once, bounded shuffling, the same batches at every world size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lth_scale.data.streamed.order import epoch_order, rank_rows
from lth_scale.data.streamed.samples import Column
from lth_scale.errors import UserError


class Case(NamedTuple):
    shard: Column
    lanes: int
    batch: int
    window: int

    def order(self, order: int = 0, noise: int = 0, epoch: int = 0, window: int | None = None) -> Column:
        return epoch_order(order, noise, epoch, self.shard, self.lanes, self.batch, window or self.window)


def column(counts: list[int]) -> Column:
    return np.repeat(np.arange(len(counts)), counts).astype(np.int64)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lanes = draw(st.sampled_from([1, 2, 4, 8, 12]))
    batch = lanes * draw(st.integers(1, 4))
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12).filter(lambda counts: sum(counts) >= batch))
    return Case(column(counts), lanes, batch, draw(st.integers(1, 50)))


SEEDS = st.integers(0, 2**32)
ORDINARY = Case(column([40, 25, 33, 39]), 4, 16, 10)


@given(cases(), SEEDS, st.integers(0, 100))
def test_every_sample_comes_at_most_once_in_whole_global_batches(case: Case, seed: int, epoch: int) -> None:
    found = case.order(seed, 0, epoch)
    assert found.dtype == np.int64 and found.shape == (len(case.shard) // case.batch, case.batch)
    assert len(np.unique(found)) == found.size
    assert found.min() >= 0 and found.max() < len(case.shard)
    assert np.array_equal(found, case.order(seed, 0, epoch))


@given(cases(), SEEDS)
def test_each_lane_is_shuffled_within_its_window_only(case: Case, seed: int) -> None:
    """A window of 1 shuffles nothing, so it shows the lanes as they were cut."""

    def lanes(found: Column) -> Column:
        part = found.reshape(len(found), case.lanes, -1)
        return part.transpose(1, 0, 2).reshape(case.lanes, -1)

    plain, mixed = lanes(case.order(seed, window=1)), lanes(case.order(seed))
    for first in range(0, plain.shape[1], case.window):
        block = slice(first, first + case.window)
        assert np.array_equal(np.sort(plain[:, block]), np.sort(mixed[:, block]))


@given(cases(), SEEDS)
def test_lanes_end_to_end_are_whole_shards_in_a_random_order(case: Case, seed: int) -> None:
    found = case.order(seed, window=1)
    line = found.reshape(len(found), case.lanes, -1).transpose(1, 0, 2).reshape(-1)
    runs = case.shard[line][np.flatnonzero(np.diff(case.shard[line], prepend=-1))]
    assert len(runs) == len(set(runs.tolist()))
    for number in runs.tolist():
        of_shard = line[case.shard[line] == number]
        assert np.array_equal(of_shard, np.sort(of_shard))


@given(cases(), SEEDS)
def test_global_batches_are_the_same_on_1_2_and_4_ranks(case: Case, seed: int) -> None:
    found = case.order(seed)
    for world in (1, 2, 4):
        if case.lanes % world:
            continue
        parts = [found[:, rank_rows(rank, world, case.lanes, case.batch)] for rank in range(world)]
        assert {part.shape for part in parts} == {(len(found), case.batch // world)}
        assert np.array_equal(np.concatenate(parts, axis=1), found)


@given(st.lists(st.integers(4, 10), min_size=30, max_size=40), SEEDS, st.sampled_from([2, 4]))
def test_a_shard_is_read_by_two_ranks_at_most(counts: list[int], seed: int, world: int) -> None:
    case = Case(column(counts), 8, 16, 5)
    found = case.order(seed)
    readers: dict[int, set[int]] = {}
    for rank in range(world):
        for shard in np.unique(case.shard[found[:, rank_rows(rank, world, 8, 16)]]).tolist():
            readers.setdefault(shard, set()).add(rank)
    assert max(map(len, readers.values())) <= 2
    assert sum(len(ranks) > 1 for ranks in readers.values()) <= world - 1  # only where two ranks' parts meet


def test_without_lanes_both_ranks_would_read_most_shards() -> None:
    """The control of the test above: rows cut out of a plain permutation."""
    shard = column([7] * 32)
    plain = np.random.default_rng(0).permutation(224).reshape(-1, 16)
    assert len(np.intersect1d(shard[plain[:, :8]], shard[plain[:, 8:]])) > 25


def test_other_samples_sit_out_each_epoch() -> None:
    for counts in ([37], [20, 17], [5] * 7 + [2]):
        case = Case(column(counts), 2, 8, 4)
        out = [frozenset(range(37)) - set(case.order(epoch=epoch).reshape(-1).tolist()) for epoch in range(30)]
        assert {len(left) for left in out} == {5}
        assert len(set(out)) > 25
        assert len(frozenset().union(*out)) > 30  # and over time it is everyone's turn


def test_nobody_sits_out_when_batches_divide_the_samples() -> None:
    case = Case(column([20, 12]), 4, 8, 4)
    assert sorted(case.order(epoch=3).reshape(-1).tolist()) == list(range(32))


def test_orders_differ_between_seeds_epochs_and_noise() -> None:
    drawn = [ORDINARY.order(0), ORDINARY.order(1), ORDINARY.order(0, epoch=1), ORDINARY.order(0, noise=1)]
    for i, one in enumerate(drawn):
        for other in drawn[i + 1 :]:
            assert (one != other).mean() > 0.9


def test_it_shuffles_across_shards_and_within() -> None:
    heads, within = set(), []
    for epoch in range(20):
        found = ORDINARY.order(epoch=epoch)
        lane = found.reshape(len(found), 4, -1)[:, 0].reshape(-1)
        heads.add(int(ORDINARY.shard[lane[0]]))
        within.append(bool((np.diff(lane) < 0).sum() > len(lane) // 4))
    assert heads == {0, 1, 2, 3} and all(within)


def test_the_order_is_frozen() -> None:
    """Another order would break the resume of every run on disk."""
    found = epoch_order(7, 1, 2, column([9, 4, 8]), 2, 4, 3)
    assert found.tolist() == FROZEN


def test_large_epochs_are_complete() -> None:
    case = Case(column([1251] * 1024), 64, 1024, 512)
    found = case.order(5, epoch=9)
    assert found.shape == (1251, 1024)
    assert np.bincount(found.reshape(-1), minlength=1251 * 1024).max() == 1


@pytest.mark.parametrize("lanes", [3, 16])
def test_lanes_that_do_not_divide_the_batch_are_refused(lanes: int) -> None:
    message = rf"data.lanes={lanes} does not divide train.batch_size=8; valid values of data.lanes: 1, 2, 4, 8$"
    with pytest.raises(UserError, match=message):
        rank_rows(0, 1, lanes, 8)
    with pytest.raises(UserError, match=message):
        epoch_order(0, 0, 0, column([9]), lanes, 8, 4)


def test_devices_that_do_not_divide_the_lanes_are_refused() -> None:
    with pytest.raises(UserError, match=r"data.lanes=4 .* 3 devices .*hardware.devices.*devices: 1, 2, 4$"):
        rank_rows(0, 3, 4, 12)


FROZEN = [[10, 11, 7, 13], [9, 0, 6, 15], [12, 1, 16, 14], [4, 2, 17, 18], [3, 5, 19, 20]]

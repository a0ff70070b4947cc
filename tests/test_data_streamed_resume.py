"""Exact resume: from any step, with any workers and world size, the batches are those that would have come."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streamed_folders import batches, make_folder, opened
from torch import Tensor

from lth_scale.data.streamed.loading import Streamed, StreamedBatches
from lth_scale.data.streamed.shards import Shards

TRAIN = [9, 6, 11, 7]
Pair = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume")
    make_folder(path, TRAIN)
    return path


def equal(ones: list[Pair], others: list[Pair]) -> bool:
    return len(ones) == len(others) and all(
        torch.equal(x, again) and torch.equal(y, label) for (x, y), (again, label) in zip(ones, others, strict=True)
    )


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[Pair]:
    """Three epochs of four steps, two micro-batches each, read in this process."""
    return list(batches(opened(folder), micro_batch=4))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_no_bit(folder: Path, whole: list[Pair], workers: int) -> None:
    assert equal(whole, list(batches(opened(folder, workers=workers), micro_batch=4)))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 3), (1, 2), (3, 0)])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_after_a_stop_at_any_step_the_next_batch_comes(
    folder: Path, whole: list[Pair], before: int, after: int, stop: int
) -> None:
    """The first reader is left with batches fetched ahead; prefetched is not consumed."""
    first = iter(batches(opened(folder, workers=before), micro_batch=4))
    head = list(itertools.islice(first, 2 * stop))
    del first
    tail = list(batches(opened(folder, workers=after), micro_batch=4, start=stop))
    assert equal(whole, head + tail)


def test_iterating_again_begins_at_the_start(folder: Path, whole: list[Pair]) -> None:
    served = batches(opened(folder), micro_batch=4)
    next(iter(served))
    assert equal(whole, list(served))


def test_another_noise_or_seed_is_another_run(folder: Path, whole: list[Pair]) -> None:
    """The control: equality above is not that of constant batches."""
    for fields in ({"noise": 1}, {"order": 4}, {"augment_seed": 6}):
        other = list(batches(opened(folder), micro_batch=4, **fields))
        same = sum(torch.equal(x, again) for (x, _), (again, _) in zip(whole, other, strict=True))
        assert same <= 1  # two orders of so few samples may meet
    assert torch.equal(whole[0][1], next(iter(batches(opened(folder), micro_batch=4, augment_seed=6)))[1])


class Run(NamedTuple):
    counts: list[int]
    lanes: int
    batch: int
    window: int
    stop: int
    worlds: tuple[int, int]

    def served(self, dataset: Streamed, start: int, end: int, world: int) -> list[list[Pair]]:
        """Each rank's pairs."""
        return [list(self._part(dataset, start, end, rank, world)) for rank in range(world)]

    def _part(self, dataset: Streamed, start: int, end: int, rank: int, world: int) -> StreamedBatches:
        return batches(dataset, batch_size=self.batch, start=start, stop=end, rank=rank, world=world)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    lanes = draw(st.sampled_from([1, 2, 4]))
    batch = lanes * draw(st.integers(1, 3))
    counts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda counts: sum(counts) >= batch))
    world = st.sampled_from([world for world in (1, 2, 4) if lanes % world == 0])
    return Run(counts, lanes, batch, draw(st.integers(1, 9)), draw(st.integers(0, 6)), (draw(world), draw(world)))


@settings(max_examples=25)
@given(runs())
def test_any_stop_and_change_of_world_size_keeps_every_global_batch(run: Run) -> None:
    end = run.stop + 2
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), run.counts, test=[1])
        dataset = opened(Path(folder), lanes=run.lanes, window=run.window)
        whole = run.served(dataset, 0, end, 1)[0]
        pieces = run.served(dataset, 0, run.stop, run.worlds[0]), run.served(dataset, run.stop, end, run.worlds[1])
    joined = [
        (torch.cat([x for x, _ in ranks]), torch.cat([y for _, y in ranks]))
        for piece in pieces
        for ranks in zip(*piece, strict=True)
    ]
    assert equal(whole, joined)
    steps = sum(run.counts) // run.batch
    for epoch in range(end // steps):
        seen = torch.cat([y for _, y in whole[epoch * steps : (epoch + 1) * steps]]).tolist()
        assert len(set(seen)) == len(seen) == steps * run.batch


@pytest.mark.parametrize("workers", [1, 2])
def test_a_change_of_world_size_through_workers(folder: Path, whole: list[Pair], workers: int) -> None:
    """Equal global batch: two ranks serve what one would have served, in the same order."""
    ranks = [
        list(batches(opened(folder, workers=workers), micro_batch=4, start=5, rank=rank, world=2)) for rank in range(2)
    ]
    assert [len(part) for part in ranks] == [7, 7]
    joined = [pair for pairs in zip(*ranks, strict=True) for pair in pairs]
    assert equal(whole[10:], joined)


class Log:
    """Counts what is read, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        read = Shards.read

        def counted(shards: Shards, shard: int, offset: int, size: int) -> bytes:
            self.reads += 1
            return read(shards, shard, offset, size)

        monkeypatch.setattr(Shards, "read", counted)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many")
    make_folder(path, [8] * 20, test=[1])
    return path


def test_resuming_reads_nothing_of_what_came_before(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(monkeypatch)
    for start in (1, 19, 20, 57, 10_000):
        dataset = opened(many, window=8)
        log.reads = 0
        next(iter(batches(dataset, start=start, stop=start + 5)))
        assert log.reads == 8
        assert dataset.shards.opened <= 2 * 2  # the shards in the open window of each lane


def test_a_reader_that_replays_would_be_seen(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: skipping batches of a reader that begins at 0 reads them all."""
    log, dataset = Log(monkeypatch), opened(many, window=8)
    list(itertools.islice(batches(dataset, stop=20), 19, 20))
    assert log.reads == 20 * 8 and dataset.shards.opened == 20

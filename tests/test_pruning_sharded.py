"""Shards: however the tensors are split, over however many processes, the mask is the one of the whole, bit for bit."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from proofs import DONE
from states import spawned

from lth_scale.config import Prune
from lth_scale.errors import UserError
from lth_scale.masks import Bits
from lth_scale.pruning import INITIAL, NOISE, SALIENCY, Shard, budgets, candidates, masking, next_masks, threshold
from lth_scale.pruning.ranks import Counts, Ranks

SIZES = (3_000, 7, 1_200, 1)
CONFIGS = [
    Prune(0.3),
    Prune(0.3, scope="layer"),
    Prune(0.9, min_per_layer=5),
    Prune(0.999),
    Prune(0.3, scope="uniform", criterion="movement"),
    Prune(scope="erk", schedule="target", to=0.1, rounds=3, criterion="magnitude_increase"),
    Prune(schedule="list", densities=(0.5, 0.2, 0.1), criterion="random"),
    Prune(0.3, scope="erk", min_per_layer=3, criterion="grasp"),
    Prune(scope="n:m", nm="3:4,1:4"),
]


def values(kind: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    normal = [torch.randn(size, generator=generator) * (1 + index) for index, size in enumerate(SIZES)]
    shape = {
        "normal": lambda w: w,
        "ties": lambda w: w.round(),
        "constant": lambda w: torch.full_like(w, -0.5),
        "80 % zero": lambda w: w * (w.abs() > 1.3 * w.abs().median()),
        "denormal": lambda w: w * 1e-40,
        "zeros of both signs": lambda w: torch.zeros_like(w).copysign(w),
        "heavy": lambda w: w.mul(9).exp(),
    }[kind]
    return [shape(weights) for weights in normal]


KINDS_OF_VALUES = ["normal", "ties", "constant", "80 % zero", "denormal", "zeros of both signs", "heavy"]


def masks_of_round(kind: str, config: Prune, number: int) -> list[torch.Tensor]:
    """The mask of the whole after some rounds; all ones for 0."""
    kept = [torch.ones(size, dtype=torch.bool) for size in SIZES]
    for turn in range(number):
        kept = list(pruned(part(kind, kept, [(0, size) for size in SIZES]), config, turn + 1).values())
    return kept


def pruned(
    shards: Sequence[Shard], config: Prune, number: int, group: dist.ProcessGroup | None = None
) -> dict[str, torch.Tensor]:
    """The masks of round ``number`` from shards under those of the round before."""
    goal = budgets(shards, config, number)
    return {name: torch.from_numpy(bits[:]) for name, bits in next_masks(shards, config, goal, group).items()}


def part(kind: str, kept: Sequence[torch.Tensor], ranges: Sequence[tuple[int, int]]) -> list[Shard]:
    """One process's shards, given its range of each tensor; the mask's bits are a range of the whole mask's."""
    masks = [Bits.pack(mask.numpy()) for mask in kept]
    held = zip(values(kind), others(), masks, ranges, strict=True)
    return [
        Shard(f"t{index}", weights[first:last].clone(), first, shape(len(weights)), mask.range(first, last), "fc", cut)
        for index, (weights, extra, mask, (first, last)) in enumerate(held)
        for cut in [{name: number[first:last].clone() for name, number in extra.items()}]
    ]


def others() -> list[dict[str, torch.Tensor]]:
    """What criteria want beside the weights, of each tensor."""
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(size, generator=generator) for size in SIZES]
    return [{INITIAL: each, NOISE: each.exp(), SALIENCY: -each} for each in drawn]


def shape(size: int) -> tuple[int, ...]:
    """Of a convolution with four inputs, where the size allows it."""
    return (size // 12, 4, 3) if size % 12 == 0 else (size,)


def ranges(cuts: Sequence[Sequence[int]], rank: int) -> list[tuple[int, int]]:
    """The rank's range of each tensor, from where each is cut."""
    edges = [[0, *(min(cut, size) for cut in sorted(where)), size] for where, size in zip(cuts, SIZES, strict=True)]
    return [(edge[rank], edge[rank + 1]) for edge in edges]


def joined(parts: Sequence[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    return torch.cat([masks[name] for masks in parts])


class Threads(Ranks):
    """Ranks that are threads of one process: cheap enough to try any number of splits."""

    def __init__(self, rank: int, board: list[Counts], barrier: threading.Barrier) -> None:
        super().__init__(None, torch.device("cpu"))
        object.__setattr__(self, "_mine", (rank, board, barrier))

    @property
    def size(self) -> int:
        return len(self._mine[1])

    @property
    def rank(self) -> int:
        return self._mine[0]

    def sum(self, counts: Counts) -> Counts:
        rank, board, barrier = self._mine
        board[rank] = counts
        barrier.wait(5)
        total = np.sum(board, axis=0)
        barrier.wait(5)
        return total


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> None:
    """Reach the sampled way, and cross blocks, with few weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threshold, "SMALL", 512)
        patch.setattr(threshold, "SAMPLE", (300, 1000))
        patch.setattr(candidates, "BLOCK", 504)
        yield


def in_threads(kind: str, config: Prune, number: int, cuts: list[list[int]], world: int) -> list[dict]:
    """Each rank's part of the next masks after some rounds."""
    kept = masks_of_round(kind, config, number)
    board, barrier = [np.zeros(0, np.int64)] * world, threading.Barrier(world)

    def work(rank: int) -> dict[str, torch.Tensor]:
        try:
            return pruned(part(kind, kept, ranges(cuts, rank)), config, number + 1, Threads(rank, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(world) as pool:
        patch.setattr(masking, "Ranks", lambda group, device: group or Ranks(None, device))
        return list(pool.map(work, range(world)))


@settings(max_examples=60)
@given(
    kind=st.sampled_from(KINDS_OF_VALUES),
    config=st.sampled_from(CONFIGS),
    number=st.integers(0, 2),
    world=st.integers(1, 5),
    data=st.data(),
)
def test_any_split_gives_the_mask_of_the_whole(
    kind: str, config: Prune, number: int, world: int, data: st.DataObject
) -> None:
    cuts = [data.draw(st.lists(st.integers(0, size), min_size=world - 1, max_size=world - 1)) for size in SIZES]
    parts = in_threads(kind, config, number, cuts, world)
    whole = masks_of_round(kind, config, number + 1)
    assert all(torch.equal(joined(parts, f"t{index}"), mask) for index, mask in enumerate(whole))


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_more_weights_send_no_more(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process hands as much to the sums for ten times the weights."""
    handed: list[list[int]] = [[], [], []]
    send = Threads.sum

    def counted(ranks: Threads, counts: Counts) -> Counts:
        handed[ranks.rank].append(8 * counts.size)
        return send(ranks, counts)

    monkeypatch.setattr(Threads, "sum", counted)
    totals = []
    for scale in (1, 10):
        monkeypatch.setattr(sys.modules[__name__], "SIZES", (3_000 * scale, 900 * scale))
        in_threads("normal", Prune(scope=scope), 0, [[400, 401], [5, 900]], 3)
        totals.append([sum(sizes) for sizes in handed])
        assert all(8 * 3 * 4096 < total < 8 * (2 * 3 * 4096 + 50) for total in totals[-1])
        for sizes in handed:
            sizes.clear()
    assert totals[0] == totals[1]


CUTS = {
    2: [[1_000], [7], [0], [1]],
    3: [[10, 2_900], [3, 3], [0, 1_200], [0, 0]],
    4: [[999, 1_001, 2_003], [1, 2, 3], [401, 401, 1_200], [0, 1, 1]],
}
CASES = [(kind, CONFIGS[(turn + half) % 4], half) for turn, kind in enumerate(KINDS_OF_VALUES) for half in (0, 1)]
CASES += [(kind, config, half) for config in CONFIGS[4:] for kind, half in (("normal", 0), ("ties", 1))]


def _work(rank: int, world: int) -> None:
    """One real process: every kind of values and config on shards; then what must be refused."""
    threshold.SMALL, threshold.SAMPLE, candidates.BLOCK = 512, (300, 1000), 504
    for case in CASES:
        _check(case, ranges(CUTS[world], rank), dist.group.WORLD)
    _refusals(rank, world)
    if world == 4:
        _replicas(rank)


def _check(case: tuple[str, Prune, int], mine: Sequence[tuple[int, int]], group: dist.ProcessGroup) -> None:
    """The mask over the group is this process's part of the mask of the whole."""
    kind, config, number = case
    found = pruned(part(kind, masks_of_round(kind, config, number), mine), config, number + 1, group)
    for (name, mask), whole, (first, last) in zip(
        found.items(), masks_of_round(kind, config, number + 1), mine, strict=True
    ):
        assert torch.equal(mask, whole[first:last]), (*case, name)


class OverTheWorld(Ranks):
    """What must not be: how many go is decided in the group, where they end by all processes, replicas too."""

    def sum(self, counts: Counts) -> Counts:
        census = counts.ndim == 2
        return super().sum(counts) if census else Ranks(dist.group.WORLD, self.device).sum(counts)


def _replicas(rank: int) -> None:
    """Two replicas of two processes each, as in HSDP; then the same with the sums over the world."""
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine, group = ranges(CUTS[2], rank % 2), groups[rank // 2]
    for case in CASES:
        _check(case, mine, group)
    with pytest.raises(AssertionError, match="6000 of 3000"):
        _check(CASES[0], mine, dist.group.WORLD)
    masking.Ranks = OverTheWorld
    for config in CONFIGS[:2]:
        kept = masks_of_round("normal", config, 0)
        removed = [int((~mask).sum()) for mask in pruned(part("normal", kept, mine), config, 1, group).values()]
        total = torch.tensor(removed).sum()
        dist.all_reduce(total, group=group)
        assert abs(int(total) - 0.15 * sum(SIZES)) <= len(SIZES), "half of the 30 % asked for"


def _refusals(rank: int, world: int) -> None:
    kept = masks_of_round("normal", CONFIGS[0], 0)
    whole = part("normal", kept, [(0, size) for size in SIZES])
    alone = pruned(whole, CONFIGS[0], 1)
    assert all(
        torch.equal(mask, after)
        for mask, after in zip(masks_of_round("normal", CONFIGS[0], 1), alone.values(), strict=True)
    )
    with pytest.raises(AssertionError, match=f"{world * 3000} of 3000"):
        pruned(whole, CONFIGS[0], 1, dist.group.WORLD)
    mine = part("normal", kept, ranges(CUTS[world], rank))
    if rank == 1:
        mine[0].weights[0] = math.nan
    with pytest.raises(UserError, match="t0 holds NaN"):
        pruned(mine, CONFIGS[0], 1, dist.group.WORLD)


@pytest.mark.distributed
@pytest.mark.parametrize("world", CUTS)
def test_real_processes(world: int, tmp_path: Path) -> None:
    """Also: a group whose processes each hold everything is refused (no replica counts twice), and NaN on all ranks.

    Four are then two replicas of two as well.
    """
    assert spawned(world, tmp_path / "group", lambda rank: _work(rank, world)) == [DONE] * world

"""Schedules: how many weights survive each round in all, and how many of them each pool keeps; exact integers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from lth_scale.config import Prune
from lth_scale.errors import UserError
from lth_scale.pruning.scopes import Pool


def removal(rate: float, survivors: int, floor: int = 0) -> int:
    """Weights that one round removes from a pool: round(rate * survivors), but never below ``floor`` survivors."""
    return max(0, min(round(rate * survivors), survivors - floor))


def at_rates(groups: Sequence[Pool]) -> Iterator[list[int]]:
    """Survivors of each pool in round 0, 1, ... without end, each pool by its own rate."""
    kept = [pool.size for pool in groups]
    while True:
        yield kept
        kept = [left - removal(pool.rate, left, pool.floor) for pool, left in zip(groups, kept, strict=True)]


def totals(groups: Sequence[Pool], numel: int, config: Prune) -> Iterator[int]:
    """Survivors of all pools together in round 0, 1, ... without end; after a schedule's last round nothing changes.

    Args:
        groups: the pools.
        numel: all prunable weights, those that no pool has too: densities are shares of them.
        config: rate, prune.to in prune.rounds rounds of one rate, or prune.densities.

    Raises:
        UserError: a density is below what may be pruned.
    """
    size, floor = sum(pool.size for pool in groups), sum(pool.floor for pool in groups)
    if config.schedule == "rate":
        kept = size
        while True:
            yield kept
            kept -= removal(config.rate, kept, floor)
    ends = config.densities if config.schedule == "list" else (config.to,)
    left = [round(density * numel) - (numel - size) for density in ends if density is not None]
    if left[-1] < max(floor, 1):
        key, value = ("to", config.to) if config.schedule == "target" else ("densities", config.densities)
        raise UserError(
            f"prune.{key}={value!r} cannot be reached: {numel - size + max(floor, 1):,} of {numel:,} weights stay"
            " (prune.rates that are 0, prune.min_per_layer); choose a larger density"
        )
    yield size
    if config.schedule == "target":
        left = [round(size * (left[-1] / size) ** (turn / config.rounds)) for turn in range(1, config.rounds)] + left
    yield from left
    yield from repeat(left[-1])


def shares(groups: Sequence[Pool], total: int) -> list[int]:
    """How many of ``total`` survivors each pool keeps: in proportion to weights, between floor and size, exactly.

    Every pool keeps round(scale * weight), with the largest scale that does not exceed the total; those whose rounding
    comes next, and at one scale the first ones, keep one more. Rounding by one common scale (a divisor method, unlike
    that by largest remainders) lets no pool grow when the total shrinks.
    """
    floors, sizes = (np.array([getattr(pool, key) for pool in groups], np.int64) for key in ("floor", "size"))
    weights = np.array([pool.weight for pool in groups], np.float64)

    def at(scale: float) -> npt.NDArray[np.int64]:
        return np.clip(np.floor(scale * weights + 0.5).astype(np.int64), floors, sizes)

    assert floors.sum() <= total <= sizes.sum(), "a total that the pools cannot have"
    low, high = 0.0, float((sizes / weights).max()) * 2 + 1
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if at(middle).sum() <= total else (low, middle)
    kept = at(low)
    for index in np.flatnonzero(at(high) > kept)[: total - int(kept.sum())]:
        kept[index] += 1
    return [int(count) for count in kept]

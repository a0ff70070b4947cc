"""How many weights each round leaves: exact integers, known before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from lth_scale.config import Prune
from lth_scale.errors import UserError
from lth_scale.pruning.scopes import Pool, pools

Tensor = tuple[str, int, str]
"""(name, weights, kind)"""


@dataclass(frozen=True)
class Planned:
    """What one round trains.

    Args:
        round: 0 is dense.
        kept: surviving prunable weights.
        numel: all prunable weights.
        density: kept / numel.
        per_tensor: name -> weights kept; None if the scope lets tensors compete, which only training decides.
    """

    round: int
    kept: int
    numel: int
    density: float
    per_tensor: dict[str, int] | None


def removal(rate: float, survivors: int, floor: int = 0) -> int:
    """Weights that one round removes from a pool: round(rate * survivors), but never below ``floor`` survivors."""
    return max(0, min(round(rate * survivors), survivors - floor))


def _chain(tensors: Sequence[Tensor], config: Prune, groups: Sequence[Pool]) -> Iterator[dict[Pool, int]]:
    """Survivors of each pool in round 0, 1, ... without end."""
    sizes = {pool: [tensors[member][1] for member in pool.members] for pool in groups}
    floors = {pool: sum(min(config.min_per_layer, size) for size in sizes[pool]) for pool in groups}
    kept = {pool: sum(sizes[pool]) for pool in groups}
    while True:
        yield kept
        kept = {pool: left - removal(pool.rate, left, floors[pool]) for pool, left in kept.items()}


def rounds(config: Prune, tensors: Sequence[Tensor]) -> int:
    """R, the last round: prune.rounds, or with prune.to the first whose density is at most that.

    Raises:
        UserError: prune.to is below what prune.rates and prune.min_per_layer let any round reach.
    """
    if config.to is None:
        return config.rounds
    total = sum(numel for _, numel, _ in tensors)
    groups = pools([kind for _, _, kind in tensors], config)
    fixed = total - sum(tensors[member][1] for pool in groups for member in pool.members)
    last: dict[Pool, int] = {}
    for number, kept in enumerate(_chain(tensors, config, groups)):
        density = (fixed + sum(kept.values())) / total
        if density <= config.to:
            return number
        if kept == last:
            raise UserError(
                f"prune.to={config.to} cannot be reached: from round {number - 1} on the density stays at {density:.6g}"
                " (prune.rates that are 0, prune.min_per_layer, or too few weights); choose a larger prune.to"
            )
        last = kept
    raise AssertionError("unreachable")


def plan(tensors: Sequence[Tensor], config: Prune) -> list[Planned]:
    """Rounds 0 to R exactly as :func:`lth_scale.pruning.next_masks` will leave them.

    Raises:
        UserError: prune.to cannot be reached, or the scope refuses the rates.
    """
    groups = pools([kind for _, _, kind in tensors], config)
    count = rounds(config, tensors) + 1
    return [
        _planned(number, kept, tensors) for number, kept in enumerate(islice(_chain(tensors, config, groups), count))
    ]


def _planned(number: int, kept: dict[Pool, int], tensors: Sequence[Tensor]) -> Planned:
    total = sum(numel for _, numel, _ in tensors)
    pooled = sum(tensors[member][1] for pool in kept for member in pool.members)
    left = total - pooled + sum(kept.values())
    per_tensor = {name: numel for name, numel, _ in tensors}
    per_tensor |= {tensors[pool.members[0]][0]: value for pool, value in kept.items()}
    alone = all(len(pool.members) == 1 for pool in kept)
    return Planned(number, left, total, left / total, per_tensor if alone else None)

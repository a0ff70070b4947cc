"""The next mask: exactly the asked number of survivors removed, lowest (score, index) first, whole or over shards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.distributed import ProcessGroup

from lth_scale.bits import Bytes
from lth_scale.config import Prune
from lth_scale.errors import UserError
from lth_scale.masks import Bits
from lth_scale.pruning.candidates import Bools, Candidates, Keys, alive, has_nan
from lth_scale.pruning.criteria import criteria
from lth_scale.pruning.patterned import patterned
from lth_scale.pruning.planning import Budget
from lth_scale.pruning.ranks import Counts, Ranks
from lth_scale.pruning.scopes import scopes
from lth_scale.pruning.shard import Shard
from lth_scale.pruning.threshold import Sifted, Threshold, bracket, find, packed, sift


def next_masks(
    shards: Sequence[Shard], config: Prune, goal: Sequence[Budget], group: ProcessGroup | None = None
) -> dict[str, Bits]:
    """Remove the lowest-scored survivors (Frankle & Carbin 2019, section 1, step 3).

    The order is (score, index), the index running over the tensors as given and the weights in them, so ties are
    decided and each pool keeps exactly what its budget says. With prune.min_per_layer each tensor's largest survivors
    stay out of the competition. Under an n:m scope the competition is within each m inputs.

    Args:
        shards: every prunable tensor, in the same order on all processes; an empty range where one holds nothing.
        config: the prune section.
        goal: what :func:`lth_scale.pruning.budgets` says of the round that the masks are for; tensors in none of its
            pools keep their masks.
        group: the processes that share one copy of the tensors; None if each holds them whole, as the ranks of DDP do.

    Returns:
        Name -> n bits, the next mask on each shard's range, within the current one.

    Raises:
        UserError: NaN weights (named; infinite ones are the largest), or an unknown criterion or scope.
    """
    assert len({shard.name for shard in shards}) == len(shards), "one shard per tensor"
    device = shards[0].weights.device if shards else torch.device("cpu")
    assert not scopes[config.scope].channels, "lth_scale.structured finds masks of channels"
    everything = Candidates(shards, criteria[config.criterion].score, Ranks(group, device))
    survivors = _census(everything)
    floors = np.minimum(survivors, config.min_per_layer)
    masks: dict[str, Bits] = {}
    for budget in goal:
        members = list(budget.members)
        k = int(survivors[members].sum()) - budget.kept
        assert k >= 0, f"{[shards[member].name for member in members]}: fewer survivors than {budget.kept}"
        if budget.pattern is None or k == 0:
            masks |= _prune(everything, members, k, survivors, floors)
        else:
            masks |= _patterned(everything, members, budget.pattern)
    pooled = {member for budget in goal for member in budget.members}
    masks |= _unchanged(everything, [index for index in range(len(shards)) if index not in pooled])
    return {shard.name: masks[shard.name] for shard in shards}


def _census(pool: Candidates) -> Counts:
    """Survivors of each tensor over the group, int64 [tensors]; proves that the group's ranges make up the tensors."""
    local = np.array([[len(shard) for shard in pool.shards], [alive(shard) for shard in pool.shards]])
    held, survivors = pool.ranks.sum(local)
    for shard, size in zip(pool.shards, held, strict=True):
        assert size == shard.numel, (
            f"{shard.name}: {size} of {shard.numel} weights in the group; it must be the ranks that share one copy"
        )
    return survivors


def _subset(pool: Candidates, members: Sequence[int]) -> Candidates:
    return replace(pool, shards=[pool.shards[member] for member in members])


def _unchanged(everything: Candidates, members: Sequence[int]) -> dict[str, Bits]:
    """The members' current masks."""
    pool = _subset(everything, members)
    _refuse_nan(pool, [any(has_nan(keys) for _, keys, _ in pool.blocks(shard)) for shard in pool.shards])
    return {shard.name: Bits.ones(len(shard)) if shard.kept is None else shard.kept for shard in pool.shards}


def _patterned(everything: Candidates, members: Sequence[int], pattern: tuple[int, int]) -> dict[str, Bits]:
    """Masks of n in each m weights."""
    pool = _subset(everything, members)
    found = [patterned(pool, shard, pattern) for shard in pool.shards]
    _refuse_nan(pool, [nan for _, nan in found])
    return {shard.name: bits for shard, (bits, _) in zip(pool.shards, found, strict=True)}


def _refuse_nan(pool: Candidates, found: Iterable[bool]) -> None:
    """Raises UserError on all processes if one of them found a NaN."""
    for shard, count in zip(pool.shards, pool.ranks.sum(np.array(list(found), np.int64)), strict=True):
        if count:
            raise UserError(f"{shard.name} holds NaN weights, which have no rank: training diverged; lower train.lr")


def _prune(everything: Candidates, members: list[int], k: int, survivors: Counts, floors: Counts) -> dict[str, Bits]:
    """Masks of the members after removing k weights in all, leaving tensor t at least floors[t] of survivors[t].

    Letting all compete and then clamping the tensors that lost too much is exact: with them out the threshold only
    rises, so a clamped tensor stays clamped.
    """
    if k == 0:
        return _unchanged(everything, members)
    pool = _subset(everything, members)
    edges = bracket(pool, int(survivors[members].sum()), k)
    parts = [sift(pool, shard, *edges) for shard in pool.shards]
    _refuse_nan(pool, (part.nan for part in parts))
    found = find(pool, parts, edges, k)
    quotas = _quotas(pool, found, k)
    removed = pool.ranks.sum(found.less + quotas)
    removable = survivors - floors
    over = [member for member, count in zip(members, removed, strict=True) if count > removable[member]]
    if not over:
        return _finish(pool, parts, found, quotas)
    del parts
    rest = [member for member in members if member not in over]
    masks = _prune(everything, rest, k - int(removable[over].sum()), survivors, floors)
    for member in over:
        masks |= _prune(everything, [member], int(removable[member]), survivors, floors)
    return masks


def _quotas(pool: Candidates, found: Threshold, k: int) -> Counts:
    """How many of this process's survivors exactly at the threshold go, per shard: the first in global index order."""
    less, equal = pool.ranks.sum(np.array([found.less.sum(), found.equal.sum()]))
    if k == less + equal:
        return found.equal
    offsets = np.array([shard.offset for shard in pool.shards])
    table = pool.ranks.gather(np.stack([offsets, found.equal]))
    quotas, left = np.zeros_like(found.equal), k - int(less)
    for index in range(len(offsets)):
        for rank in np.argsort(table[:, 0, index], kind="stable"):
            taken = min(left, int(table[rank, 1, index]))
            left -= taken
            if rank == pool.ranks.rank:
                quotas[index] = taken
    return quotas


def _finish(pool: Candidates, parts: Sequence[Sifted], found: Threshold, quotas: Counts) -> dict[str, Bits]:
    """The next masks, from the sifted ones where those suffice."""
    for shard, part, quota in zip(pool.shards, parts, quotas, strict=True):
        if found.inside:
            stay = part.places[_above(part.keys, found.key, int(quota))]
            np.bitwise_or.at(part.mask, stay >> 3, np.uint8(1) << (stay & 7).astype(np.uint8))
        else:
            _cut(pool, shard, found.key, int(quota), part.mask)
    return {shard.name: Bits(part.mask, 0, len(shard)) for shard, part in zip(pool.shards, parts, strict=True)}


def _above(keys: Keys, key: int, quota: int) -> Bools:
    """Which of these survivors stay: those above ``key``, and those at it but for the first ``quota``."""
    stay = keys >= key
    stay[np.flatnonzero(keys == key)[:quota]] = False
    return stay


def _cut(pool: Candidates, shard: Shard, key: int, quota: int, mask: Bytes) -> None:
    """Write one shard's next mask in a pass of its own, for a threshold that sifting missed."""
    for where, keys, kept in pool.blocks(shard):
        stay = np.ones(len(keys), np.bool_) if kept is None else kept
        chosen = np.flatnonzero(stay)
        stay[chosen] = _above(keys[chosen], key, quota)
        quota -= min(quota, int(np.count_nonzero(keys[chosen] == key)))
        mask[packed(where)] = np.packbits(stay, bitorder="little")

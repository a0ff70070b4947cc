"""What one round keeps of masks that no run has made: any survivors, not those planned."""

from __future__ import annotations

from collections.abc import Sequence

from lth_scale.config import Prune
from lth_scale.pruning import Budget, Shard, budgets, removal


def one_round(shards: Sequence[Shard], survivors: Sequence[int], config: Prune) -> list[Budget]:
    """The survivors of each pool of scope global or layer, less its rate; n:m keeps what it always does."""
    if config.scope == "n:m":
        return budgets(shards, config, 1)
    made = []
    for pool in budgets(shards, config, 0):
        kept = sum(survivors[member] for member in pool.members)
        floor = sum(min(survivors[member], config.min_per_layer) for member in pool.members)
        own = getattr(config.rates, shards[pool.members[0]].kind) if config.scope == "layer" else None
        made.append(Budget(pool.members, kept - removal(config.rate if own is None else own, kept, floor)))
    return made


def survivors(shards: Sequence[Shard]) -> list[int]:
    """Of shards that are whole tensors."""
    return [len(shard) if shard.kept is None else shard.kept.count() for shard in shards]

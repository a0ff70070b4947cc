"""How many weights each round leaves: exact integers, known before anything is trained, and what pruning goes by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat

from lth_scale.config import Prune
from lth_scale.errors import UserError
from lth_scale.pruning.criteria import criteria
from lth_scale.pruning.schedules import at_rates, shares, totals
from lth_scale.pruning.scopes import Pool, pools, scopes
from lth_scale.pruning.tensors import Weights


@dataclass(frozen=True)
class Budget:
    """How many weights the tensors of a pool (by their position) keep together in one round.

    Args:
        members: positions of the tensors.
        kept: weights of all of them.
        pattern: (n, m) where they are n of each m inputs.
    """

    members: tuple[int, ...]
    kept: int
    pattern: tuple[int, int] | None = None


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


def budgets(tensors: Sequence[Weights], config: Prune, number: int) -> list[Budget]:
    """What each pool keeps in round ``number``; tensors in no pool keep everything. Raises UserError as :func:`plan`.

    After the last round of a schedule with a last one, nothing more is removed.
    """
    return next(islice(_chain(tensors, config), number, None))


def rounds(config: Prune, tensors: Sequence[Weights]) -> int:
    """R, the last round: prune.rounds, or as many as the schedule or prune.to asks for. Raises UserError as plan."""
    _check(config)
    if scopes[config.scope].pattern:
        return len(config.patterns)
    if config.schedule == "list":
        return len(config.densities)
    if config.to is None or config.schedule == "target":
        return config.rounds
    last: list[Budget] = []
    for number, kept in enumerate(_chain(tensors, config)):
        density = _planned(number, kept, tensors).density
        if density <= config.to:
            return number
        if kept == last:
            raise UserError(
                f"prune.to={config.to} cannot be reached: from round {number - 1} on the density stays at {density:.6g}"
                " (prune.rates that are 0, prune.min_per_layer, or too few weights); choose a larger prune.to"
            )
        last = kept
    raise AssertionError("unreachable")


def plan(tensors: Sequence[Weights], config: Prune) -> list[Planned]:
    """Rounds 0 to R exactly as :func:`lth_scale.pruning.next_masks` will leave them.

    Raises:
        UserError: a density cannot be reached, or fields of the prune section do not go together.
    """
    count = rounds(config, tensors) + 1
    return [_planned(number, kept, tensors) for number, kept in enumerate(islice(_chain(tensors, config), count))]


def _chain(tensors: Sequence[Weights], config: Prune) -> Iterator[list[Budget]]:
    """The budgets of round 0, 1, ... without end."""
    _check(config)
    groups = pools(tensors, config)
    if scopes[config.scope].pattern:
        yield from _patterned(groups, config)
        return
    for kept in _survivors(groups, sum(tensor.numel for tensor in tensors), config):
        yield [Budget(pool.members, left) for pool, left in zip(groups, kept, strict=True)]


def _patterned(groups: Sequence[Pool], config: Prune) -> Iterator[list[Budget]]:
    yield [Budget(pool.members, pool.size) for pool in groups]
    for n, m in chain(config.patterns, repeat(config.patterns[-1])):
        yield [Budget(pool.members, pool.size // m * n, (n, m)) for pool in groups]


def _survivors(groups: Sequence[Pool], numel: int, config: Prune) -> Iterator[list[int]]:
    scope = scopes[config.scope]
    if scope.own_rates and config.schedule == "rate":
        yield from at_rates(groups)
    else:
        yield from (shares(groups, total) for total in totals(groups, numel, config))


def _planned(number: int, kept: Sequence[Budget], tensors: Sequence[Weights]) -> Planned:
    total = sum(tensor.numel for tensor in tensors)
    pooled = sum(tensors[member].numel for budget in kept for member in budget.members)
    left = total - pooled + sum(budget.kept for budget in kept)
    per_tensor = {tensor.name: tensor.numel for tensor in tensors}
    per_tensor |= {tensors[budget.members[0]].name: budget.kept for budget in kept}
    alone = all(len(budget.members) == 1 for budget in kept)
    return Planned(number, left, total, left / total, per_tensor if alone else None)


def _check(config: Prune) -> None:
    """Raises UserError naming two fields that do not go together."""
    schedule, scope = f"prune.schedule={config.schedule!r}", f"prune.scope={config.scope!r}"
    pattern = scopes[config.scope].pattern
    wrong = {
        f"{schedule} needs prune.to, the density after prune.rounds rounds": config.schedule == "target"
        and not config.to,
        f"{schedule} needs prune.rounds, 1 or more": config.schedule == "target" and not config.rounds,
        f"{schedule} needs prune.densities, that after each round": config.schedule == "list" and not config.densities,
        f"prune.densities={config.densities!r} is only for prune.schedule='list'; {schedule} has none": (
            config.schedule != "list" and bool(config.densities)
        ),
        f"prune.to={config.to} is not valid with {schedule}, whose last density is its end": (
            config.schedule == "list" and config.to is not None
        ),
        f"prune.nm={config.nm!r} is only for prune.scope='n:m', not {scope}": not pattern and config.nm != Prune().nm,
        f"{schedule} is not valid with {scope}, whose densities are prune.nm; choose rate": (
            pattern and config.schedule != "rate"
        ),
        f"prune.to={config.to} is not valid with {scope}, whose densities are prune.nm; leave it unset": (
            pattern and config.to is not None
        ),
        f"prune.min_per_layer={config.min_per_layer} is not valid with {scope}; set it to 0": (
            pattern and config.min_per_layer > 0
        ),
        f"prune.weights='ema' is not valid with prune.criterion={config.criterion!r}, which ranks before training": (
            config.weights == "ema" and criteria[config.criterion].before
        ),
    }
    for message, holds in wrong.items():
        if holds:
            raise UserError(message)

"""Every criterion within every scope on every schedule: planned counts, shrinking masks, and the lowest scores gone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch

from lth_scale.config import Prune, Rates
from lth_scale.masks import Bits
from lth_scale.pruning import (
    INITIAL,
    NOISE,
    SALIENCY,
    Budget,
    Shard,
    Tensor,
    budgets,
    criteria,
    next_masks,
    plan,
    scopes,
)

TENSORS = [
    Tensor("first", (30, 12), "conv"),
    Tensor("conv", (20, 8, 3, 3), "conv"),
    Tensor("odd", (7, 5), "fc"),
    Tensor("whole", (40, 4), "fc"),
    Tensor("output", (10, 40), "output"),
]
SCHEDULES = {
    "rate": {"rate": 0.3, "rounds": 5},
    "target": {"schedule": "target", "to": 0.2, "rounds": 5},
    "list": {"schedule": "list", "densities": (0.8, 0.6, 0.3, 0.2)},
}
CASES = [
    pytest.param(Prune(criterion=criterion, scope=scope, rates=Rates(fc=rate), **SCHEDULES[schedule]), id=name)
    for criterion, scope, schedule, rate in itertools.product(criteria, scopes, SCHEDULES, (None, 0.0))
    if not (scopes[scope].pattern or scopes[scope].channels)
    for name in [f"{criterion}-{scope}-{schedule}{'-fc whole' if rate == 0 else ''}"]
] + [
    pytest.param(Prune(criterion=criterion, scope="n:m", nm=nm), id=f"{criterion}-n:m-{nm}")
    for criterion, nm in itertools.product(criteria, ("2:4", "3:4,1:4"))
]
Kept = dict[str, torch.Tensor]


def numbers(number: int) -> dict[str, dict[str, torch.Tensor]]:
    """Weights (under ``""``) and what criteria want beside them; of few levels, so that ties are many."""
    generator = torch.Generator().manual_seed(number)
    made: dict[str, dict[str, torch.Tensor]] = {}
    for index, tensor in enumerate(TENSORS):
        drawn = (torch.randn(4, tensor.numel, generator=generator) * (2 + index)).round()
        made[tensor.name] = {"": drawn[0], INITIAL: drawn[1], NOISE: drawn[2].abs(), SALIENCY: drawn[3]}
    return made


def shards(number: int, kept: Mapping[str, torch.Tensor]) -> list[Shard]:
    held = numbers(number)
    return [
        Shard(t.name, held[t.name].pop(""), 0, t.shape, Bits.pack(kept[t.name].numpy()), t.kind, held[t.name])
        for t in TENSORS
    ]


def dense() -> Kept:
    return {tensor.name: torch.ones(tensor.numel, dtype=torch.bool) for tensor in TENSORS}


def pruned(number: int, kept: Kept, config: Prune, goal: list[Budget]) -> Kept:
    return {name: torch.from_numpy(bits[:]) for name, bits in next_masks(shards(number, kept), config, goal).items()}


def counts(kept: Kept) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in kept.items()}


def sorted_away(number: int, kept: Kept, config: Prune, goal: list[Budget]) -> Kept:
    """The definition, for pools: of the survivors in order of (score, index) the last ones stay."""
    left = {name: mask.clone() for name, mask in kept.items()}
    held = shards(number, kept)
    for budget in goal:
        members = [held[member] for member in budget.members]
        flat = torch.cat([criteria[config.criterion].score(shard) for shard in members])
        alive = torch.cat([kept[shard.name] for shard in members]).nonzero().flatten()
        gone = alive[torch.sort(flat[alive], stable=True).indices[: len(alive) - budget.kept]]
        joined = torch.cat([kept[shard.name] for shard in members])
        joined[gone] = False
        for shard, part in zip(members, joined.split([len(shard) for shard in members]), strict=True):
            left[shard.name] = part
    return left


@pytest.mark.parametrize("config", CASES)
def test_counts_are_those_planned_and_the_lowest_go(config: Prune) -> None:
    kept, rows = dense(), plan(TENSORS, config)
    for row in rows[1:]:
        goal = budgets(TENSORS, config, row.round)
        after = pruned(row.round, kept, config, goal)
        assert sum(counts(after).values()) == row.kept < sum(counts(kept).values())
        assert row.per_tensor is None or counts(after) == row.per_tensor
        assert all(bool((after[name] <= kept[name]).all()) for name in kept)
        if not scopes[config.scope].pattern:
            assert all(torch.equal(mask, after[n]) for n, mask in sorted_away(row.round, kept, config, goal).items())
        kept = after
    assert all(bool(kept[t.name].all()) for t in TENSORS if getattr(config.rates, t.kind) == 0)


@pytest.mark.parametrize("criterion", list(criteria))
def test_another_criterion_chooses_other_weights(criterion: str) -> None:
    """The control of the comparison above: it tells criteria apart."""
    goal = budgets(TENSORS, Prune(0.5), 1)
    others = [Prune(criterion=other) for other in criteria if criteria[other].score != criteria[criterion].score]
    mine = pruned(1, dense(), Prune(criterion=criterion), goal)
    for other in others:
        theirs = sorted_away(1, dense(), other, goal)
        assert any(not torch.equal(mask, theirs[name]) for name, mask in mine.items()), other.criterion


@pytest.mark.parametrize("criterion", [name for name in criteria if criteria[name].needs])
def test_what_a_criterion_needs_decides(criterion: str) -> None:
    """With the needed values all equal, the order is another one; values of which it has no need change nothing."""
    config, goal = Prune(criterion=criterion), budgets(TENSORS, Prune(0.5), 1)
    reference = next_masks(shards(1, dense()), config, goal)
    for name in (INITIAL, NOISE, SALIENCY):
        held = shards(1, dense())
        for shard in held:
            shard.extra[name].zero_()  # type: ignore[index]
        same = all((reference[n][:] == bits[:]).all() for n, bits in next_masks(held, config, goal).items())
        assert same == (name not in criteria[criterion].needs)

"""n:m: exactly n of each m consecutive inputs survive, the largest, along the dimension that the hardware wants."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import pytest
import torch

from lth_scale.config import Prune, Rates
from lth_scale.errors import UserError
from lth_scale.masks import Bits
from lth_scale.pruning import Shard, Tensor, budgets, candidates, next_masks, patterned, plan

SHAPES = {"fc": (6, 12), "conv": (5, 8, 3, 3), "grouped": (4, 4, 1), "odd": (9, 10), "bias": (12,)}


def shards(ties: bool = False) -> list[Shard]:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    drawn = {name: values.round() if ties else values for name, values in drawn.items()}
    return [Shard(name, values.flatten(), 0, SHAPES[name], None, "fc") for name, values in drawn.items()]


def masks(config: Prune, held: list[Shard]) -> dict[str, torch.Tensor]:
    found = next_masks(held, config, budgets(held, config, 1))
    return {shard.name: torch.from_numpy(found[shard.name][:]).reshape(shard.shape) for shard in held}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("nm", ["2:4", "1:4", "1:2", "3:4"])
def test_the_largest_n_of_each_m_inputs_stay(nm: str, ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterned, "BLOCK", 30)  # several walks over each tensor
    config = Prune(scope="n:m", nm=nm)
    n, m = config.patterns[0]
    held = shards(ties)
    found = masks(config, held)
    for shard in held:
        kept, weights = found[shard.name], shard.weights.reshape(shard.shape)
        if len(shard.shape) == 1 or shard.shape[1] % m:
            assert bool(kept.all())
            continue
        for out, *rest in torch.cartesian_prod(*map(torch.arange, (shard.shape[0], *shard.shape[2:], 1))).tolist():
            line = (out, slice(None), *rest[:-1])
            for group, mask in zip(weights[line].abs().split(m), kept[line].split(m), strict=True):
                order = torch.sort(group, stable=True).indices
                assert mask.nonzero().flatten().tolist() == sorted(order[m - n :].tolist())
    assert sum(int(mask.sum()) for mask in found.values()) == plan(held, config)[1].kept


@pytest.mark.parametrize("ties", [False, True])
def test_round_after_round_the_largest_survivors_stay(ties: bool) -> None:
    """3:4, 2:4, 1:4, and from then on nothing; what is gone stays gone, even before a survivor of score 0."""
    config = Prune(scope="n:m", nm="3:4,2:4,1:4")
    held = shards(ties)
    assert [row.round for row in plan(held, config)] == [0, 1, 2, 3]
    kept = {shard.name: torch.ones(shard.shape, dtype=torch.bool) for shard in held}
    for number, n in enumerate([3, 2, 1, 1], 1):
        before = {name: mask.clone() for name, mask in kept.items()}
        dead = [
            replace(s, weights=s.weights * kept[s.name].flatten(), kept=Bits.pack(kept[s.name].flatten())) for s in held
        ]
        found = next_masks(dead, config, budgets(held, config, number))
        kept = {s.name: torch.from_numpy(found[s.name][:]).reshape(s.shape) for s in held}
        assert all(bool((kept[name] <= before[name]).all()) for name in kept)
        for name in ("fc", "conv", "grouped"):
            groups = kept[name].movedim(1, -1).reshape(-1, 4)
            assert set(groups.sum(1).tolist()) == {n}
            scores = held[[*SHAPES].index(name)].weights.reshape(SHAPES[name]).abs().movedim(1, -1).reshape(-1, 4)
            lost, held_on = scores.where(~groups, -1).amax(1), scores.where(groups, math.inf).amin(1)
            assert bool((lost <= held_on).all())


def test_a_global_threshold_has_no_pattern() -> None:
    """The control: as many weights, without the pattern."""
    held = shards()
    density = plan(held, Prune(scope="n:m"))[1].density
    kept = masks(Prune(schedule="list", densities=(density,)), held)["fc"]
    assert set(kept.reshape(-1, 4).sum(1).tolist()) != {2}


def test_a_plan_says_what_stays_dense() -> None:
    tensors = [Tensor(name, shape, "fc") for name, shape in SHAPES.items()] + [Tensor("out", (10, 8), "output")]
    row = plan(tensors, Prune(scope="n:m", rates=Rates(output=0.0)))[1]
    assert row.per_tensor == {"fc": 36, "conv": 180, "grouped": 8, "odd": 90, "bias": 12, "out": 80}


def test_nan_is_refused_by_name() -> None:
    held = shards()
    held[1].weights[70] = math.nan
    with pytest.raises(UserError, match="conv holds NaN"):
        masks(Prune(scope="n:m"), held)


def test_no_byte_a_weight() -> None:
    size = 1 << 22
    held = [Shard("t", torch.randn(size), 0, (size // 64, 64), None, "fc")]
    goal = budgets(held, Prune(scope="n:m"), 1)
    tracemalloc.start()
    try:
        next_masks(held, Prune(scope="n:m"), goal)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size // 8 < peak < size // 8 + 64 * candidates.BLOCK

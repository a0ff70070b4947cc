"""Schedules and shares: exact totals, densities that hold, pools that never grow, and what does not go together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lth_scale.config import Prune, Rates
from lth_scale.errors import UserError
from lth_scale.pruning import Tensor, budgets, plan, rounds
from lth_scale.pruning.schedules import shares
from lth_scale.pruning.scopes import Pool

LENET = [Tensor("fc1", (300, 784), "fc"), Tensor("fc2", (100, 300), "fc"), Tensor("fc3", (10, 100), "output")]
CONV = [Tensor("a", (16, 3, 3, 3), "conv"), Tensor("b", (64, 32, 3, 3), "conv"), Tensor("c", (10, 64), "output")]
SCOPES = ["global", "layer", "uniform", "erk"]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("to", [0.5, 0.1, 0.0123])
def test_target_ends_at_its_density_exactly(scope: str, number: int, to: float) -> None:
    rows = plan(LENET, Prune(schedule="target", to=to, rounds=number, scope=scope))
    assert len(rows) == number + 1 and rows[-1].kept == round(to * rows[0].numel)
    factors = [later.kept / earlier.kept for earlier, later in itertools.pairwise(rows)]
    assert factors == pytest.approx([to ** (1 / number)] * number, rel=2e-3)


def test_the_same_rate_each_round_does_not_end_there() -> None:
    """The control: rate, rounded in every round, misses the density that target reaches."""
    ends = {rounds: plan(LENET, Prune(rate=1 - 0.2 ** (1 / rounds), rounds=rounds))[-1].kept for rounds in range(2, 20)}
    assert set(ends.values()) != {round(0.2 * 266_200)}


@pytest.mark.parametrize("scope", SCOPES)
def test_a_list_is_followed(scope: str) -> None:
    densities = (0.9, 0.5, 0.0301)
    rows = plan(LENET, Prune(schedule="list", densities=densities, scope=scope))
    assert [row.kept for row in rows[1:]] == [round(density * 266_200) for density in densities]


def test_densities_count_tensors_that_are_never_pruned() -> None:
    rows = plan(LENET, Prune(schedule="target", to=0.1, rounds=3, scope="uniform", rates=Rates(output=0.0)))
    assert rows[-1].kept == 26_620 and (rows[-1].per_tensor or {})["fc3"] == 1_000


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("schedule", ["target", "list"])
def test_after_the_last_round_nothing_goes(scope: str, schedule: str) -> None:
    end = {"to": 0.1, "rounds": 2} if schedule == "target" else {"densities": (0.5, 0.1)}
    config = Prune(schedule=schedule, scope=scope, **end)
    assert budgets(LENET, config, 3) == budgets(LENET, config, 2) != budgets(LENET, config, 1)
    assert rounds(config, LENET) == 2


def test_uniform_keeps_the_same_part_of_every_tensor() -> None:
    for row in plan(LENET, Prune(scope="uniform", rounds=12)):
        assert row.per_tensor
        for tensor in LENET:
            assert abs(row.per_tensor[tensor.name] - row.density * tensor.numel) <= 1


def test_erk_is_its_formula() -> None:
    """Density proportional to sum(shape) / prod(shape), at most 1 (Evci et al. 2020), solved by hand for 10 %."""
    row = plan(CONV, Prune(scope="erk", schedule="target", to=0.1, rounds=1))[-1]
    assert row.per_tensor is not None and row.kept == round(0.1 * (432 + 18_432 + 640))
    weights, rest = {"a": 25, "b": 102, "c": 74}, row.kept
    scale = rest / sum(weights.values())
    assert scale * weights["a"] > 432 * 0.5 and scale * weights["c"] > 640  # c would have more than it has: all of it
    scale = (rest - 640) / (weights["a"] + weights["b"])
    assert row.per_tensor["c"] == 640
    for name in ("a", "b"):
        assert abs(row.per_tensor[name] - scale * weights[name]) <= 1


pools = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 20), st.floats(0.01, 1e4)).map(
        lambda drawn: Pool((0,), drawn[0], min(drawn[0], drawn[1]), drawn[2], 0.2)
    ),
    min_size=1,
    max_size=8,
)


@given(groups=pools)
def test_shares_are_exact_and_never_grow(groups: list[Pool]) -> None:
    size, floor = sum(pool.size for pool in groups), sum(pool.floor for pool in groups)
    last = [pool.size for pool in groups]
    for total in range(size, floor - 1, -max(1, size // 50)):
        kept = shares(groups, total)
        assert sum(kept) == total
        assert all(pool.floor <= left <= pool.size for pool, left in zip(groups, kept, strict=True))
        assert all(left <= before for left, before in zip(kept, last, strict=True))
        last = kept


def test_largest_remainders_would_let_a_pool_grow() -> None:
    """The control (the Alabama paradox): with one survivor less in all, the last pool would get one more."""

    def largest_remainders(weights: list[int], total: int) -> list[int]:
        exact = np.array(weights) * total / sum(weights)
        kept = np.floor(exact).astype(int)
        kept[np.argsort(kept - exact, kind="stable")[: total - kept.sum()]] += 1
        return kept.tolist()

    assert largest_remainders([6, 6, 2], 11)[2] < largest_remainders([6, 6, 2], 10)[2]
    groups = [Pool((0,), 100, 0, weight, 0.2) for weight in (6, 6, 2)]
    assert shares(groups, 11)[2] >= shares(groups, 10)[2]


REFUSED = {
    "target without its density": (Prune(schedule="target"), "prune.schedule='target' needs prune.to"),
    "target in no round": (Prune(schedule="target", to=0.1, rounds=0), "'target' needs prune.rounds"),
    "list without one": (Prune(schedule="list"), "prune.schedule='list' needs prune.densities"),
    "densities without list": (Prune(densities=(0.5,)), r"prune.densities=\(0.5,\) is only for prune.schedule='list'"),
    "two ends": (Prune(schedule="list", densities=(0.5,), to=0.1), "prune.to=0.1 .*prune.schedule='list'"),
    "a pattern of no use": (Prune(nm="1:4"), "prune.nm='1:4' is only for prune.scope='n:m'"),
    "a pattern with an end": (Prune(scope="n:m", to=0.5), "prune.to=0.5 .*prune.scope='n:m'"),
    "a pattern with a floor": (Prune(scope="n:m", min_per_layer=1), "prune.min_per_layer=1 .*'n:m'"),
    "a pattern on a schedule": (
        Prune(scope="n:m", schedule="list", densities=(0.5,)),
        "prune.schedule='list' .*prune.scope='n:m'",
    ),
    "a pattern that fits nothing": (Prune(scope="n:m", nm="2:7919"), "prune.nm='2:7919' fits no tensor"),
    "averages before training": (Prune(criterion="snip", weights="ema"), "prune.weights='ema' .*criterion='snip'"),
    "a kind's rate on a schedule": (
        Prune(scope="layer", schedule="target", to=0.1, rates=Rates(output=0.1)),
        "prune.rates.output=0.1 .*prune.schedule='target'",
    ),
    "a kind's rate under erk": (Prune(scope="erk", rates=Rates(fc=0.1)), "prune.rates.fc=0.1 .*prune.scope='erk'"),
    "too low a target": (
        Prune(schedule="target", to=0.001, rates=Rates(output=0.0)),
        "prune.to=0.001 cannot be reached",
    ),
    "too low a list": (
        Prune(schedule="list", densities=(0.5, 0.0001), min_per_layer=100),
        "prune.densities=.* cannot be reached",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_by_name(name: str) -> None:
    config, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        plan(LENET, config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"densities": (0.5, 0.5)}, "prune.densities"),
        ({"densities": (0.2, 0.5)}, "prune.densities"),
        ({"densities": (1.0,)}, "prune.densities"),
        ({"densities": (0.5, 0.0)}, "prune.densities"),
        ({"nm": "4:4"}, "prune.nm='4:4'"),
        ({"nm": "0:4"}, "prune.nm='0:4'"),
        ({"nm": "two"}, "prune.nm='two'"),
        ({"nm": "2:4,3:4"}, "prune.nm='2:4,3:4'"),
        ({"nm": "3:4,2:4,2:4"}, "prune.nm='3:4,2:4,2:4'"),
        ({"nm": "4:8,2:4"}, "prune.nm='4:8,2:4'"),
        ({"nm": "3:4,"}, "prune.nm='3:4,'"),
        ({"batches": -1}, "prune.batches=-1"),
    ],
)
def test_a_field_that_is_not_valid_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Prune(**fields)  # type: ignore[arg-type]

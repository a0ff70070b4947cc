"""The next mask: exact counts and a decided order, whatever the values, against a stable sort of everything."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from budgets import one_round, survivors
from hypothesis import given
from hypothesis import strategies as st

from lth_scale.config import Prune, Rates
from lth_scale.errors import UserError
from lth_scale.masks import Bits
from lth_scale.pruning import (
    Shard,
    Tensor,
    candidates,
    masking,
    next_masks,
    plan,
    removal,
    rounds,
    scopes,
    threshold,
)

KINDS = ("conv", "fc", "output")
# The others have their own tests.
POOLED = [name for name in scopes if not (scopes[name].pattern or scopes[name].channels)]
LENET = [Tensor("fc1", (300, 784), "fc"), Tensor("fc2", (100, 300), "fc"), Tensor("fc3", (10, 100), "output")]


def normal(size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def heavy(size: int) -> torch.Tensor:
    return normal(size).mul(4).exp().copysign(normal(size, 1))


def mostly_zero(size: int) -> torch.Tensor:
    return normal(size) * (torch.rand(size, generator=torch.Generator().manual_seed(2)) > 0.8)


VALUES: dict[str, Callable[[int], torch.Tensor]] = {
    "normal": normal,
    "constant": lambda size: torch.full((size,), 0.25),
    "two values": lambda size: torch.where(normal(size) > 0.5, 2.0, -1.0),
    "all zero": torch.zeros,
    "80 % zero": mostly_zero,
    "zeros of both signs": lambda size: torch.zeros(size).copysign(normal(size)),
    "denormal": lambda size: normal(size) * 1e-40,
    "heavy tails": heavy,
    "with infinities": lambda size: torch.where(normal(size).abs() > 1.5, math.inf, 1.0) * normal(size, 3).sign(),
    "few levels": lambda size: (normal(size) * 4).round(),
    "ascending": lambda size: torch.arange(size, dtype=torch.float32),
    "one per scale": lambda size: 10.0 ** torch.linspace(-44, 38, size),
}


def shards(
    values: Sequence[torch.Tensor], kept: Sequence[torch.Tensor] | None = None, kinds: Sequence[str] = ("fc",)
) -> list[Shard]:
    return [
        Shard(f"t{i}", value, 0, (len(value),), None if kept is None else packed(kept[i]), kinds[i % len(kinds)])
        for i, value in enumerate(values)
    ]


def packed(kept: torch.Tensor) -> Bits:
    """At an odd place of a larger memory, as in the map of a file."""
    return Bits.pack(torch.cat([torch.ones(3, dtype=torch.bool), kept]).numpy()).range(3, 3 + len(kept))


def after_round(candidates: Sequence[Shard], config: Prune) -> dict[str, Bits]:
    return next_masks(candidates, config, one_round(candidates, survivors(candidates), config))


def pruned(candidates: Sequence[Shard], config: Prune) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(bits[:]) for name, bits in after_round(candidates, config).items()}


def cut(values: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    return list(values.split(list(sizes)))


def stable_sort(values: torch.Tensor, kept: torch.Tensor, k: int) -> torch.Tensor:
    """The definition: the first k survivors in the order of (|w| as bits, index) go."""
    index = kept.nonzero().flatten()
    order = torch.sort(values.abs().view(torch.int32)[index], stable=True).indices
    left = kept.clone()
    left[index[order[:k]]] = False
    return left


def joined(masks: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(masks.values()))


@pytest.fixture(params=["small pools", "sampled", "misled by the sample"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to the threshold, in blocks small enough that a test crosses many."""
    if request.param != "small pools":
        monkeypatch.setattr(threshold, "SMALL", 256)
        monkeypatch.setattr(threshold, "SAMPLE", (64, 1000))
        monkeypatch.setattr(candidates, "BLOCK", 1000)
    if request.param == "misled by the sample":
        monkeypatch.setattr(masking, "bracket", lambda *_: (0x7F000000, 0x7F000001))
    return str(request.param)


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.999, 0.0001])
@pytest.mark.parametrize("values", VALUES)
def test_equals_a_stable_sort(values: str, rate: float, path: str) -> None:
    tensor, sizes = VALUES[values](20_011), (4_000, 1, 16_000, 10)
    kept = normal(20_011, 9) > -0.3
    for current in (None, kept):
        masks = pruned(shards(cut(tensor, sizes), current if current is None else cut(current, sizes)), Prune(rate))
        before = torch.ones(20_011, dtype=torch.bool) if current is None else current
        k = removal(rate, int(before.sum()))
        assert torch.equal(joined(masks), stable_sort(tensor, before, k))
        assert int(joined(masks).sum()) == int(before.sum()) - k


@pytest.mark.parametrize("spread", [0.0, 1e-7, 0.3])
def test_large_pool_takes_the_sampled_way(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = 1 + spread * normal(600_001)
    assert len(tensor) > threshold.SMALL
    calls = []
    monkeypatch.setattr(candidates.Candidates, "survivors", lambda self: calls.append(1))
    sizes = (300_000, len(tensor) - 300_000)
    masks = pruned(shards(cut(tensor, sizes)), Prune())
    everything = torch.ones(len(tensor), dtype=torch.bool)
    assert torch.equal(joined(masks), stable_sort(tensor, everything, removal(0.2, len(tensor))))
    assert not calls, "the full radix selection is for misleading samples only"


values_and_kept = st.lists(
    st.tuples(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, math.inf, 0.5]) | st.floats(width=32, allow_nan=False)
    ).flatmap(lambda value: st.tuples(st.just(value[0]), st.booleans())),
    min_size=1,
    max_size=60,
)


@given(pairs=values_and_kept, at=st.integers(0, 60), rate=st.floats(0.01, 0.99))
def test_any_values(pairs: list[tuple[float, bool]], at: int, rate: float) -> None:
    tensor = torch.tensor([value for value, _ in pairs])
    kept = torch.tensor([alive for _, alive in pairs])
    sizes = (min(at, len(pairs)), len(pairs) - min(at, len(pairs)))
    masks = pruned(shards(cut(tensor, sizes), cut(kept, sizes)), Prune(rate))
    assert torch.equal(joined(masks), stable_sort(tensor, kept, removal(rate, int(kept.sum()))))


def test_a_strict_threshold_gets_ties_wrong() -> None:
    """Keeping |w| > sorted[n], as is common: one too many without ties, everything at the threshold with them."""
    k = 200
    for values, wrong in ((normal(1000), k + 1), (torch.ones(1000), 1000)):
        strict = values.abs() > values.abs().sort().values[k]
        assert int((~strict).sum()) == wrong
        assert int((~pruned(shards([values]), Prune())["t0"]).sum()) == k


def test_order_of_tensors_decides_only_ties() -> None:
    values = [normal(500, seed) for seed in range(3)]
    forward = pruned(shards(values), Prune())
    named = list(reversed(shards(values)))
    assert all(torch.equal(forward[name], mask) for name, mask in pruned(named, Prune()).items())
    tied = pruned(shards([torch.ones(5), torch.ones(5)]), Prune())
    assert tied["t0"].tolist() == [False, False, True, True, True] and bool(tied["t1"].all())


def test_removed_weights_do_not_compete() -> None:
    """The weights already removed are the smallest; counting them again would leave the mask as it is."""
    values = torch.arange(100.0)
    kept = values >= 50
    after = pruned(shards([values], [kept]), Prune())["t0"]
    assert torch.equal(after, values >= 60)


def test_inputs_are_left_alone(tmp_path: Path) -> None:
    """Weights and masks may lie in files that are only read: writing to their maps would end the process."""
    values, kept = normal(1000), packed(normal(1000, 1) > 0)
    values.numpy().tofile(tmp_path / "weights")
    kept.data.tofile(tmp_path / "mask")
    with warnings.catch_warnings(action="ignore"):  # that torch cannot protect it
        mapped = torch.from_numpy(np.memmap(tmp_path / "weights", np.float32, "r"))
    bits = Bits(np.memmap(tmp_path / "mask", np.uint8, "r"), kept.offset, kept.size)
    for scope in POOLED:
        there = after_round([Shard("t0", mapped, 0, (1000,), bits, "fc")], Prune(scope=scope))["t0"]
        here = after_round([Shard("t0", values, 0, (1000,), kept, "fc")], Prune(scope=scope))["t0"]
        assert there[:].tolist() == here[:].tolist() and 0 < here.count() < kept.count()
    assert torch.equal(mapped, values) and bits[:].tolist() == kept[:].tolist()


@pytest.mark.parametrize("scope", POOLED)
def test_no_byte_a_weight(scope: str) -> None:
    """The peak: the mask's bits, a few blocks, the sample and the candidates."""
    size = 1 << 24
    candidates_ = [Shard("t0", normal(size), 0, (size,), packed(normal(size, 1) > 0), "fc")]
    goal = one_round(candidates_, survivors(candidates_), Prune(scope=scope))
    tracemalloc.start()
    try:
        next_masks(candidates_, Prune(scope=scope), goal)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size // 8 < peak < 0.6 * size


@pytest.mark.parametrize("scope", POOLED)
@pytest.mark.parametrize("kept", [True, False])
def test_nan_is_refused_by_name(scope: str, kept: bool) -> None:
    values = [normal(100), normal(100)]
    values[1][70] = math.nan
    masks = [torch.ones(100, dtype=torch.bool), torch.arange(100) != 70] if kept else None
    with pytest.raises(UserError, match="t1 holds NaN"):
        pruned(shards(values, masks), Prune(scope=scope))


def test_negative_nan_is_refused() -> None:
    with pytest.raises(UserError, match="t0 holds NaN"):
        pruned(shards([torch.tensor([0.0, -math.nan, 1.0])]), Prune())


def test_part_of_a_tensor_needs_its_group() -> None:
    part = Shard("t0", normal(10), 0, (20,), None, "fc")
    with pytest.raises(AssertionError, match="10 of 20"):
        pruned([part], Prune())


def test_layer_scope_has_a_rate_for_each_kind() -> None:
    values = [normal(1000), normal(1000, 1) * 100, normal(1000, 2)]
    config = Prune(0.2, Rates(conv=0.1, output=0.0), scope="layer")
    masks = pruned(shards(values, None, KINDS), config)
    assert [int(mask.sum()) for mask in masks.values()] == [900, 800, 1000]


def test_global_scope_leaves_out_kinds_with_rate_zero() -> None:
    values = [normal(1000), normal(1000, 1), normal(1000, 2) * 1e-6]
    masks = pruned(shards(values, None, KINDS), Prune(rates=Rates(output=0.0)))
    assert bool(masks["t2"].all()) and sum(int((~mask).sum()) for mask in masks.values()) == 400


def test_global_scope_refuses_a_second_rate() -> None:
    config = Prune(rates=Rates(output=0.1))
    with pytest.raises(UserError, match=r"prune\.rates\.output=0\.1 .*prune\.scope=layer"):
        pruned(shards([normal(10)], None, ("output",)), config)
    with pytest.raises(UserError, match=r"prune\.rates\.output"):
        plan(LENET, config)
    assert plan([LENET[0]], config), "a rate for a kind that the model lacks disturbs nobody"


@pytest.mark.parametrize("scope", POOLED)
def test_nothing_to_prune_is_refused(scope: str) -> None:
    with pytest.raises(UserError, match=r"prune\.rates"):
        plan(LENET, Prune(scope=scope, rates=Rates(fc=0.0, output=0.0)))


@pytest.mark.parametrize(("key", "config"), [("scope", Prune(scope="globl")), ("criterion", Prune(criterion="size"))])
def test_unknown_names_are_refused(key: str, config: Prune) -> None:
    with pytest.raises(UserError, match=rf"prune\.{key}=.*choose from"):
        pruned(shards([normal(10)]), config)


def protected_reference(values: list[torch.Tensor], kept: list[torch.Tensor], rate: float, least: int) -> torch.Tensor:
    """Take each tensor's largest survivors out, then sort the rest."""
    competing = [
        stable_sort(value, mask, max(0, int(mask.sum()) - least)) ^ mask
        for value, mask in zip(values, kept, strict=True)
    ]
    rest, alive = torch.cat(competing), torch.cat(kept)
    k = removal(rate, int(alive.sum()), int(alive.sum()) - int(rest.sum()))
    return (alive & ~rest) | stable_sort(torch.cat(values), rest, k)


@given(
    scales=st.lists(st.sampled_from([1e-3, 0.1, 0.5, 1.0, 10.0]), min_size=1, max_size=5),
    rate=st.sampled_from([0.1, 0.3, 0.8, 0.97]),
    least=st.integers(0, 40),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_min_per_layer(scales: list[float], rate: float, least: int, ties: bool, seed: int) -> None:
    values = [scale * normal(30 + 9 * index, seed + index) for index, scale in enumerate(scales)]
    values = [value.mul(3).round() for value in values] if ties else values
    kept = [normal(len(value), seed + 50) > -1 for value in values]
    masks = pruned(shards(values, kept), Prune(rate, min_per_layer=least))
    assert torch.equal(joined(masks), protected_reference(values, kept, rate, least))
    for mask, before in zip(masks.values(), kept, strict=True):
        assert int(mask.sum()) >= min(least, int(before.sum()))


def test_without_min_per_layer_a_tensor_can_empty() -> None:
    values = [normal(1000), normal(50) * 1e-6]
    assert int(pruned(shards(values), Prune())["t1"].sum()) == 0
    masks = pruned(shards(values), Prune(min_per_layer=7))
    assert int(masks["t1"].sum()) == 7 and int(joined(masks).sum()) == 1050 - removal(0.2, 1050)


def test_densities_of_the_paper() -> None:
    """LeNet-300-100 at 20/20/10 %: Frankle & Carbin 2019, figure 3."""
    steps = plan(LENET, Prune(scope="layer", rates=Rates(fc=0.2, output=0.1)))
    assert [round(100 * steps[number].density, 2) for number in (0, 3, 7, 9, 15)] == [100, 51.28, 21.07, 13.52, 3.58]


CONFIGS = {
    "layer": Prune(0.2, Rates(output=0.1), rounds=15, scope="layer"),
    "layer, output kept": Prune(0.3, Rates(output=0.0), rounds=15, scope="layer"),
    "layer, floor": Prune(0.5, rounds=15, scope="layer", min_per_layer=40),
    "global": Prune(0.2, rounds=15),
    "global, output kept": Prune(0.4, Rates(output=0.0), rounds=15),
    "global, floor": Prune(0.5, rounds=15, min_per_layer=40),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_plan_is_what_pruning_leaves(name: str) -> None:
    tensors = [Tensor("a", (3001,), "fc"), Tensor("b", (700,), "fc"), Tensor("c", (101,), "output")]
    config = CONFIGS[name]
    values = [normal(tensor.numel, index) * (1 + index) for index, tensor in enumerate(tensors)]
    kept = [torch.ones(tensor.numel, dtype=torch.bool) for tensor in tensors]
    steps = plan(tensors, config)
    assert [step.round for step in steps] == list(range(16))
    for step in steps:
        counts = [int(mask.sum()) for mask in kept]
        assert (step.kept, step.numel, step.density) == (sum(counts), 3802, sum(counts) / 3802)
        assert (step.per_tensor is None) == (config.scope == "global")
        assert step.per_tensor is None or list(step.per_tensor.values()) == counts
        kept = list(pruned(shards(values, kept, ("fc", "fc", "output")), config).values())


@pytest.mark.parametrize("scope", POOLED)
@pytest.mark.parametrize("to", [0.9, 0.8, 0.2, 0.01])
def test_to_is_the_first_round_at_or_below(scope: str, to: float) -> None:
    config = Prune(to=to, scope=scope)
    steps = plan(LENET, config)
    assert rounds(config, LENET) == len(steps) - 1
    assert steps[-1].density <= to < steps[-2].density


@pytest.mark.parametrize(
    "config",
    [
        Prune(to=0.05, rates=Rates(output=0.0)),
        Prune(to=0.05, min_per_layer=100),
        Prune(to=0.05, min_per_layer=100, scope="layer"),
        Prune(to=1e-6),
    ],
)
def test_unreachable_density_is_refused(config: Prune) -> None:
    with pytest.raises(UserError, match=r"prune\.to=.* cannot be reached"):
        rounds(config, [Tensor("a", (900,), "fc"), Tensor("b", (100,), "output")])


@given(rate=st.floats(0, 0.999), survivors=st.integers(0, 10**9), floor=st.integers(0, 10**9))
def test_removal_stays_between_nothing_and_the_floor(rate: float, survivors: int, floor: int) -> None:
    k = removal(rate, survivors, floor)
    assert 0 <= k <= round(rate * survivors)
    assert survivors - k >= min(floor, survivors)
    assert removal(rate, survivors) == round(rate * survivors)

"""How alike two masks are: exact on small cases, near chance on random ones, and permuted units found again."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import states
import torch
from tiny_runs import K, final, play, theta, ticket_mask, tiny, used_mask

from lth_scale import cli
from lth_scale.checkpoint import State, Stored
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.export import looking
from lth_scale.masks import Mask
from lth_scale.tickets import Overlap, Ticket, compare, matched, signs
from lth_scale.tickets.units import random_like

LENET = {"fc1.weight": (15, 20), "fc2.weight": (12, 15), "output.weight": (4, 12)}


def drawn(shapes: Mapping[str, tuple[int, ...]], density: float, seed: int) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    return Mask({name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()})


def turned(mask: Mask) -> Mask:
    return Mask({name: ~kept for name, kept in mask.items()})


# --- overlaps ---------------------------------------------------------------------------------------------------------


def test_identical_masks_are_1_and_disjoint_ones_0() -> None:
    mask = drawn({"a": (30, 7), "b": (11,)}, 0.4, 0)
    assert [overlap.jaccard for overlap in compare(mask, mask).values()] == [1.0, 1.0]
    assert [overlap.jaccard for overlap in compare(mask, turned(mask)).values()] == [0.0, 0.0]
    assert Overlap.total(compare(mask, mask).values()).jaccard == 1.0
    assert Overlap.total(compare(mask, turned(mask)).values()).jaccard == 0.0


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 5, 2), (1000, 999)])
def test_counts_are_those_of_the_sets(shape: tuple[int, ...]) -> None:
    one, other = drawn({"a": shape}, 0.3, 1), drawn({"a": shape}, 0.6, 2)
    found, both, either = compare(one, other)["a"], one["a"] & other["a"], one["a"] | other["a"]
    assert found.common == int(both.sum()) and found.kept == (one.kept, other.kept)
    if either.any():
        assert found.jaccard == int(both.sum()) / int(either.sum())


def test_the_overall_value_is_of_sums_over_layers() -> None:
    one, other = drawn({"a": (100,), "b": (300,)}, 0.3, 1), drawn({"a": (100,), "b": (300,)}, 0.6, 2)
    every, parts = Overlap.total(compare(one, other).values()), compare(one, other)
    assert (every.numel, every.common) == (400, parts["a"].common + parts["b"].common)
    assert every.expected == parts["a"].expected + parts["b"].expected
    assert every.chance == every.expected / (one.kept + other.kept - every.expected)


def subsets(n: int, kept: int) -> list[set[int]]:
    return [set(places) for places in itertools.combinations(range(n), kept)]


@pytest.mark.parametrize(("n", "a", "b"), [(6, 3, 2), (7, 1, 4), (5, 5, 2), (6, 0, 3)])
def test_the_expected_number_is_exact(n: int, a: int, b: int) -> None:
    """Over all pairs of sets of these sizes."""
    pairs = [len(one & other) for one in subsets(n, a) for other in subsets(n, b)]
    mask = [Mask({"w": torch.arange(n) < kept}) for kept in (a, b)]
    found = compare(*mask)["w"]
    assert found.expected == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert found.chance == pytest.approx(found.expected / (a + b - found.expected), abs=1e-12)


@pytest.mark.parametrize(("d1", "d2"), [(0.5, 0.5), (0.1, 0.3), (0.02, 0.02)])
def test_random_masks_are_near_chance(d1: float, d2: float) -> None:
    shapes = {"a": (500, 400), "b": (300, 300)}
    every = Overlap.total(compare(drawn(shapes, d1, 1), drawn(shapes, d2, 2)).values())
    spread = (every.numel * d1 * d2 * (1 - d1) * (1 - d2)) ** 0.5  # of the number kept by both
    assert abs(every.common - every.expected) < 4 * spread
    assert every.chance == pytest.approx(d1 * d2 / (d1 + d2 - d1 * d2), rel=0.05)
    assert every.jaccard == pytest.approx(every.chance, rel=5 * spread / every.expected)


def test_unequal_layers_alone_are_no_likeness() -> None:
    """The control of the sum: chance at the overall density would call these masks alike."""
    shapes = {"a": (10_000,), "b": (10_000,)}
    one, other = (Mask({"a": drawn(shapes, 0.9, seed)["a"], "b": drawn(shapes, 0.01, seed)["b"]}) for seed in (1, 2))
    every = Overlap.total(compare(one, other).values())
    blind = Overlap(every.numel, every.kept, every.common, every.kept[0] * every.kept[1] / every.numel)
    assert every.jaccard == pytest.approx(every.chance, rel=0.02) and every.jaccard > 2 * blind.chance


def test_empty_masks_are_alike() -> None:
    nothing = Mask({"a": torch.zeros(9, dtype=torch.bool)})
    found = compare(nothing, nothing)["a"]
    assert (found.jaccard, found.chance) == (1.0, 1.0)


def test_masks_of_different_networks_are_refused() -> None:
    one, other = drawn({"a": (3,), "b": (2, 2)}, 0.5, 0), drawn({"b": (4,), "c": (1,)}, 0.5, 0)
    with pytest.raises(UserError, match=r"a is \(3,\) and missing; b is \(2, 2\) and \(4,\); c is missing and \(1,\)"):
        compare(one, other)


# --- signs ------------------------------------------------------------------------------------------------------------


def test_signs_are_compared_where_both_keep_a_weight() -> None:
    one, other = (State({"w": torch.tensor(values)}) for values in ([1.0, -2.0, 3.0, 0.0], [5.0, 6.0, -7.0, -0.0]))
    ones = Mask.ones({"w": (4,)})
    some = Mask({"w": torch.tensor([True, True, False, True])})
    assert signs("w", (ones, one), (ones, other)) == 2  # the first, and the zeros
    assert signs("w", (ones, one), (some, other)) == 2
    assert signs("w", (ones, one), (turned(some), other)) == 0
    assert signs("w", (ones, one), (ones, one)) == 4


def test_signs_of_states_larger_than_a_piece() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (State({"w": torch.randn(1_500, 1_000, generator=generator)}) for _ in range(2))
    a, b = drawn({"w": (1_500, 1_000)}, 0.5, 3), drawn({"w": (1_500, 1_000)}, 0.5, 4)
    same = (one.weights["w"].sign() == other.weights["w"].sign()) & a["w"] & b["w"]
    assert signs("w", (a, one), (b, other)) == int(same.sum())


# --- hidden units -----------------------------------------------------------------------------------------------------


def permuted(mask: Mask, seed: int) -> Mask:
    """The same network with its hidden units in another order."""
    generator = torch.Generator().manual_seed(seed)
    layers, before = {}, torch.arange(20)
    for name, (units, _) in LENET.items():
        order = torch.arange(units) if name == "output.weight" else torch.randperm(units, generator=generator)
        layers[name] = mask[name][order][:, before]
        before = order
    return Mask(layers)


@pytest.mark.parametrize("seed", range(5))
def test_permuted_units_are_found_again_exactly(seed: int) -> None:
    mask = drawn(LENET, 0.4, seed)
    other = permuted(mask, seed)
    assert Overlap.total(compare(mask, other).values()).jaccard < 0.7
    assert matched(mask, other) == mask and matched(mask, mask) == mask


def test_units_without_inputs_are_told_apart_by_their_outputs() -> None:
    mask = drawn(LENET, 0.4, 7)
    first = mask["fc1.weight"]
    first[:4] = False
    mask = Mask({**mask, "fc1.weight": first})
    assert len({tuple(column) for column in mask["fc2.weight"].T[:4].tolist()}) == 4
    assert matched(mask, permuted(mask, 1)) == mask


def test_matching_only_permutes_units() -> None:
    one, other = drawn(LENET, 0.3, 1), drawn(LENET, 0.3, 2)
    found = matched(one, other)
    assert found.counts() == other.counts()
    assert sorted(found["fc1.weight"].tolist()) == sorted(other["fc1.weight"].tolist())
    assert Overlap.total(compare(one, found).values()).common >= Overlap.total(compare(one, other).values()).common
    degrees = [sorted(mask["output.weight"].sum(0).tolist()) for mask in (found, other)]
    assert degrees[0] == degrees[1]


def test_matching_is_refused_elsewhere() -> None:
    conv = drawn({"conv.weight": (4, 3, 3, 3), "output.weight": (2, 4)}, 0.5, 0)
    unchained = drawn({"fc1.weight": (4, 3), "output.weight": (2, 5)}, 0.5, 0)
    for mask in (conv, unchained):
        with pytest.raises(UserError, match="only in fully connected networks"):
            matched(mask, mask)


def test_random_masks_after_matching_are_near_the_measured_chance() -> None:
    """The control of the matched value: matching makes any two masks look alike."""
    one, other = Ticket(drawn(LENET, 0.3, 1)), Ticket(drawn(LENET, 0.3, 2))
    told = looking.compared(one, other, match_units=True)
    found, plain = told["matched"]["all"], told["overall"]
    assert found["jaccard"] > plain["chance"] + 0.05
    assert found["jaccard"] == pytest.approx(found["chance"], abs=0.04)


def test_a_random_mask_is_a_function_of_its_draw_and_keeps_counts() -> None:
    mask = drawn(LENET, 0.3, 1)
    one, again, other = random_like(mask, 0), random_like(mask, 0), random_like(mask, 1)
    assert one == again != other and one.counts() == other.counts() == mask.counts() and one != mask


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    config = tiny(rewind={"at": f"{K}it"}, prune={"rounds": 2}, run={"seeds": (0, 1)})
    return play(config, tmp_path_factory.mktemp("diff") / "run")


def told(capsys: pytest.CaptureFixture[str], *places: str) -> dict[str, dict[str, dict[str, float]]]:
    capsys.readouterr()
    assert cli.main(["ticket", "diff", *places, "--json"]) == 0
    found: dict[str, dict[str, dict[str, float]]] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_and_its_own_packed_ticket_are_the_same(
    run: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(run.paths.root)
    assert cli.main(["ticket", "pack", root, "--seed", "1", "--out", str(tmp_path / "t")]) == 0
    found = told(capsys, f"{root}:seed=1,round=2", str(tmp_path / "t"))
    for row in (*found["layers"].values(), found["overall"]):
        assert row["jaccard"] == 1.0 == row["signs_theta_k"] and "signs_theta_T" not in row


def test_replicates_beside_their_masks_and_states(run: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, f"{run.paths.root}:seed=0,round=2", f"{run.paths.root}:seed=1,round=1")
    one, other = ticket_mask(run, 2, 0), ticket_mask(run, 1, 1)
    agreed: dict[str, float] = {"signs_theta_k": 0, "signs_theta_T": 0}
    for name, row in found["layers"].items():
        both = one[name] & other[name]
        assert row["jaccard"] == int(both.sum()) / int((one[name] | other[name]).sum())
        assert row["expected"] == int(one[name].sum()) * int(other[name].sum()) / both.numel()
        ends = {"signs_theta_k": (theta(run, K, 0), theta(run, K, 1))}
        ends["signs_theta_T"] = final(run, "ticket", 2, 0), final(run, "ticket", 1, 1)
        for part, (a, b) in ends.items():
            same = (a.weights[name].sign() == b.weights[name].sign()) & both
            assert row[part] == int(same.sum()) / int(both.sum())
            agreed[part] += int(same.sum())
    assert all(found["overall"][part] == count / found["overall"]["common"] for part, count in agreed.items())


def test_rounds_of_one_replicate_are_nested(run: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, f"{run.paths.root}:round=1", f"{run.paths.root}:round=2")["overall"]
    assert found["jaccard"] == used_mask(run, "ticket", 2).kept / used_mask(run, "ticket", 1).kept > found["chance"]
    assert found["signs_theta_k"] == 1.0


def test_the_table_has_all_of_it(run: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    places = f"{run.paths.root}:seed=0", f"{run.paths.root}:seed=1"
    assert cli.main(["ticket", "diff", *places, "--match-units"]) == 0
    said = capsys.readouterr().out
    for part in ("Jaccard", "chance", "matched", "theta_k", "theta_T", "fc1.weight", "all", "next: lth ticket show"):
        assert part in said, part
    value = Overlap.total(compare(ticket_mask(run, 2, 0), ticket_mask(run, 2, 1)).values()).jaccard
    assert f"{value:.4f}" in said


def test_a_state_that_ranks_wrote_is_compared_by_ranges_and_nan_has_no_sign(tmp_path: Path) -> None:
    whole = states.state()
    states.write(tmp_path / "state", whole, states.even(whole, 3))
    mask, parts = drawn({"fc.weight": (6, 5)}, 0.6, 0), Stored.open(tmp_path / "state")
    numbers = mask["fc.weight"] & ~whole.weights["fc.weight"].isnan()
    assert 0 < int(numbers.sum()) < mask.kept
    for state in (whole, parts):
        assert signs("fc.weight", (mask, state), (mask, whole)) == int(numbers.sum())

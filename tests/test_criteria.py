"""Criteria by their formulas, the map of signed scores, and the numbers behind the random one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lth_scale import ranking
from lth_scale.pruning import INITIAL, NOISE, SALIENCY, Shard, criteria
from lth_scale.pruning.criteria import signed

W, START = torch.tensor([0.5, -2.0, 0.0, 1.0, -0.25]), torch.tensor([-0.5, -1.0, 3.0, -0.0, 0.25])
STORED = torch.tensor([0.5, -1.0, 0.0, 2.0, -3.0])
ORDERS = {
    "magnitude": [0.5, 2, 0, 1, 0.25],
    "magnitude_at_init": [0.5, 1, 3, 0, 0.25],
    "magnitude_increase": [0, 1, -3, 1, 0],
    "movement": [1, 1, 3, 1, 0.5],
    "random": STORED.abs().tolist(),
    "snip": STORED.abs().tolist(),
    "synflow": STORED.abs().tolist(),
    "grasp": STORED.tolist(),
}


@pytest.mark.parametrize("criterion", list(criteria))
def test_scores_order_weights_as_the_formula(criterion: str) -> None:
    extra = {INITIAL: START, NOISE: STORED.abs(), SALIENCY: STORED}
    scores = criteria[criterion].score(Shard("t", W, 0, (5,), None, "fc", extra))
    formula = torch.tensor(ORDERS[criterion])
    assert scores.dtype == torch.float32 and not bool(scores.signbit().any())
    assert torch.equal(scores[:, None] < scores, formula[:, None] < formula)


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def mapped(*values: float) -> list[float]:
    return signed(np.array(values, np.float32)).tolist()


@given(one=finite, other=finite)
def test_the_map_of_signed_scores_keeps_their_order(one: float, other: float) -> None:
    low, high = sorted((one, other))
    first, second = mapped(low, high)
    assert 0 <= first <= second < math.inf and not math.copysign(1, first) < 0
    twice = np.nextafter(np.nextafter(np.float32(low), np.float32(np.inf)), np.float32(np.inf))
    if high >= twice:  # neighbours may be equal, no others
        assert first < second


def test_the_ends_of_the_map() -> None:
    largest = torch.finfo(torch.float32).max
    assert mapped(-largest, largest) == [0.0, pytest.approx(largest)]
    assert len(set(mapped(-1e-44, -0.0, 0.0, 1e-44))) == 3
    assert all(math.isnan(value) for value in mapped(math.nan, -math.nan, math.inf, -math.inf))


def test_bits_without_the_map_would_not_do() -> None:
    """The control: as plain bits, negative scores count down, and the most negative one ranks above them all."""
    bits = torch.tensor([-2.0, -1.0]).view(torch.int32)
    assert int(bits[0]) > int(bits[1])


@given(start=st.integers(0, 200_000), length=st.integers(0, 70_000), cut=st.floats(0, 1))
def test_noise_is_the_same_in_any_ranges(start: int, length: int, cut: float) -> None:
    stop, middle = start + length, start + int(length * cut)
    whole = ranking.noise(3, 1, "fc.weight", start, stop)
    halves = [ranking.noise(3, 1, "fc.weight", *edges) for edges in ((start, middle), (middle, stop))]
    assert torch.equal(whole, torch.cat(halves)) and len(whole) == length


def test_noise_is_uniform_and_of_its_own_in_each_place() -> None:
    reference = ranking.noise(3, 1, "fc.weight", 0, 100_000)
    assert bool((reference >= 0).all()) and bool(reference.isfinite().all())
    ranks = reference.view(torch.int32).double() / 0x7F800000
    assert abs(float(ranks.mean()) - 0.5) < 0.005 and abs(float(ranks.var()) - 1 / 12) < 0.002
    assert len(reference.unique()) > 99_990
    for other in ((4, 1, "fc.weight"), (3, 2, "fc.weight"), (3, 1, "fc2.weight")):
        assert not torch.equal(reference, ranking.noise(*other, 0, 100_000))

from __future__ import annotations

from math import isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lth_scale.report.verdict import Interval, comparison, interval, matching, mean_drop_under_02, within_one_sd

# Two-sided 95 % quantiles of Student's t, from a printed table.
T_1, T_2, T_4 = 12.7062, 4.30265, 2.77645

differences = st.lists(st.integers(-500, 500).map(lambda i: i / 100), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("values", "mean", "half"),
    [
        ([0.0, 1.0], 0.5, T_1 * 0.5),  # s = 0.70711, s / sqrt(2) = 0.5
        ([-1.0, 0.0, 1.0], 0.0, T_2 / 3**0.5),  # s = 1
        ([-0.3, -0.1, 0.0, 0.1, 0.3], 0.0, T_4 * 0.1),  # s = 0.223607, s / sqrt(5) = 0.1
    ],
)
def test_interval_by_hand(values: list[float], mean: float, half: float) -> None:
    found = interval(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert (found.low, found.high) == (pytest.approx(mean - half, abs=1e-4), pytest.approx(mean + half, abs=1e-4))
    assert found.half == pytest.approx(half, abs=1e-4)


def test_one_replicate_gives_a_mean_and_no_interval() -> None:
    found = interval([-0.4])
    assert found.mean == -0.4
    assert isnan(found.low) and isnan(found.high)
    assert matching(found, 0.2) == comparison(found) == "no verdict"
    assert matching(interval([]), 0.2) == "no verdict"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.19, 0.5, "matching"),
        (-0.2, 0.5, "undecided"),  # the lower end must be above, not at, the tolerance
        (-0.9, 0.1, "undecided"),
        (-0.9, -0.2, "undecided"),
        (-0.9, -0.21, "not matching"),
        (0.1, 0.5, "matching"),
    ],
)
def test_each_branch_of_the_verdict(low: float, high: float, verdict: str) -> None:
    assert matching(Interval(5, (low + high) / 2, low, high), 0.2) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.01, 1.0, "better"), (-1.0, -0.01, "worse"), (-0.1, 0.1, "undecided"), (0.0, 1.0, "undecided")],
)
def test_each_branch_of_the_comparison(low: float, high: float, verdict: str) -> None:
    assert comparison(Interval(5, (low + high) / 2, low, high)) == verdict


@pytest.mark.parametrize(("drop", "verdict"), [(0.1, "matching"), (0.2, "undecided"), (0.3, "not matching")])
def test_equal_differences_have_an_interval_of_width_zero(drop: float, verdict: str) -> None:
    # 97.6 - 97.8 is not -0.2 in floating point; the verdict must not depend on that.
    found = interval([100 * 0.976 - (100 * 0.976 + drop)] * 5)
    assert found.low == found.mean == found.high == -drop
    assert matching(found, 0.2) == verdict


@given(differences, st.floats(0.01, 5))
def test_verdicts_exclude_one_another_and_follow_the_interval(values: list[float], tolerance: float) -> None:
    found = interval(values)
    assert found.low <= found.mean <= found.high
    assert (matching(found, tolerance) == "matching") == (found.low > -tolerance)
    assert (matching(found, tolerance) == "not matching") == (found.high < -tolerance)


@given(differences)
def test_comparison_is_antisymmetric(values: list[float]) -> None:
    swap = {"better": "worse", "worse": "better", "undecided": "undecided"}
    assert comparison(interval([-v for v in values])) == swap[comparison(interval(values))]


def test_the_literatures_criteria_are_each_their_own() -> None:
    small, large = interval([-0.1, -0.1]), interval([-0.5, -0.5])
    steady, noisy = [97.0, 97.0, 97.0], [96.0, 97.0, 98.0]
    assert mean_drop_under_02(small) and not mean_drop_under_02(large)
    assert not mean_drop_under_02(interval([-0.2, -0.2]))
    assert within_one_sd(large, noisy) and not within_one_sd(large, steady)
    assert matching(large, 0.2) == "not matching"  # a noisy dense network does not make a ticket match
    assert within_one_sd(interval([-1.0, -1.0]), noisy)  # standard deviation 1, and at its edge
    assert mean_drop_under_02(Interval(0, nan, nan, nan)) is None
    assert within_one_sd(small, [97.0]) is None

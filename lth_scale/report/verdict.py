"""Paired statistics: does an arm match its own replicates' dense networks? All differences in points of accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

from scipy import stats

CONFIDENCE = 0.95
LITERATURE_DROP = 0.2
# Accuracies are counts over the test set times 100: what is equal on paper must not differ by a rounding error.
DIGITS = 9

NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Interval:
    """A mean of ``n`` values and its 95 % t-interval; low and high are nan for n < 2, mean too for n = 0."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def interval(values: Sequence[float]) -> Interval:
    """The mean and its two-sided 95 % Student t-interval with n - 1 degrees of freedom; equal values give width 0."""
    n = len(values)
    if n == 0:
        return Interval(0, nan, nan, nan)
    mean = sum(values) / n
    if n == 1:
        return Interval(1, round(mean, DIGITS), nan, nan)
    deviation = sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / sqrt(n)
    return Interval(n, round(mean, DIGITS), round(mean - half, DIGITS), round(mean + half, DIGITS))


def matching(difference: Interval, tolerance: float) -> str:
    """``matching``, ``not matching``, ``undecided``, or ``no verdict`` from fewer than two replicates.

    Args:
        difference: of arm minus dense, in points.
        tolerance: how many points a matching ticket may fall short, positive.
    """
    if difference.n < 2:
        return NO_VERDICT
    if difference.low > -tolerance:
        return "matching"
    return "not matching" if difference.high < -tolerance else "undecided"


def comparison(difference: Interval) -> str:
    """``better``, ``worse`` or ``undecided`` by whether the interval of ticket minus control excludes 0."""
    if difference.n < 2:
        return NO_VERDICT
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "undecided"


def mean_drop_under_02(difference: Interval) -> bool | None:
    """The literature's first criterion: the mean falls by less than 0.2 points. None without data."""
    return None if difference.n == 0 else difference.mean > -LITERATURE_DROP


def within_one_sd(difference: Interval, dense: Sequence[float]) -> bool | None:
    """The literature's second criterion: the mean is at most one standard deviation of the dense ones below theirs.

    None for fewer than two dense replicates. A noisy dense network always passes, so it decides nothing here.
    """
    if difference.n == 0 or len(dense) < 2:
        return None
    mean = sum(dense) / len(dense)
    deviation = sqrt(sum((v - mean) ** 2 for v in dense) / (len(dense) - 1))
    return difference.mean >= -round(deviation, DIGITS)

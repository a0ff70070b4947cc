"""LeNet-300-100 on MNIST: the claims of Frankle & Carbin 2019 beside our numbers."""

from __future__ import annotations

from math import isclose

from tables import markdown, signed

from lth_scale.report import RunResults, summary
from lth_scale.report.reading import Result
from lth_scale.report.table import accuracies, paired
from lth_scale.report.verdict import Interval, interval, matching
from lth_scale.report.words import matches_down_to, percent, rows_of


def _round(run: RunResults, density: float) -> int | None:
    """The ticket's round of a density, if any replicate has finished it."""
    found = [r["round"] for r in run.results if r["arm"] == "ticket" and isclose(r["density"], density, rel_tol=0.01)]
    return found[0] if found else None


def _stop(run: RunResults, seed: int, arm: str, number: int) -> Result | None:
    result = run.by_key.get((seed, arm, number))
    return result["early_stop"] if result else None


def _stops(
    run: RunResults, first: tuple[str, int | None], second: tuple[str, int | None]
) -> list[tuple[Result, Result]]:
    """Early stopping of two rounds, for each replicate that has both."""
    found = []
    for seed in run.seeds:
        (a, r), (b, s) = first, second
        pair = (_stop(run, seed, a, -1 if r is None else r), _stop(run, seed, b, -1 if s is None else s))
        if pair[0] and pair[1]:
            found.append((pair[0], pair[1]))
    return found


def _said(value: Interval, digits: int, unit: str, sign: str = "+") -> str:
    return signed(value.mean, value.low, value.high, value.n, digits, sign, unit)


def _bound(pairs: list[tuple[Result, Result]]) -> str:
    """What a validation loss that was still falling at the end does to a comparison."""
    late = sum(not (a["reached"] and b["reached"]) for a, b in pairs)
    return f"; not reached in {late}" if late else ""


def _earlier(run: RunResults) -> str:
    pairs = _stops(run, ("ticket", _round(run, 0.2107)), ("ticket", 0))
    share = interval([100 * (1 - ticket["steps_trained"] / dense["steps_trained"]) for ticket, dense in pairs])
    return _said(share, 0, "% earlier", "-") + _bound(pairs)


def _faster(run: RunResults) -> str:
    number = _round(run, 0.2107)
    pairs = _stops(run, ("ticket", number), ("reinit", number))
    times = interval([control["steps_trained"] / ticket["steps_trained"] for ticket, control in pairs])
    return _said(times, 2, "times", "-") + _bound(pairs)


def _gain(run: RunResults, moment: str) -> str:
    number = _round(run, 0.1352)
    if number is None:
        return "not run yet"
    return _said(paired(accuracies(run, "ticket", number, moment), accuracies(run, "ticket", 0, moment)), 2, "points")


def _at_limit(run: RunResults, moment: str) -> str:
    number = _round(run, 0.0358)
    if number is None:
        return "not run yet"
    difference = paired(accuracies(run, "ticket", number, moment), accuracies(run, "ticket", 0, moment))
    return f"{_said(difference, 2, 'points')}: {matching(difference, run.config.report.tolerance)}"


def _down_to(run: RunResults) -> str:
    best = matches_down_to(rows_of(summary(run), "ticket"))
    return "not shown at any density so far" if best is None else f"down to {percent(best['density'])}"


def claims_table(run: RunResults) -> str:
    """Each claim, the paper's figure and ours: mean over the seeds with the 95 % t-interval of the paired values."""
    rows = [
        ["early stopping against dense", "21.1", "38 % earlier", _earlier(run)],
        ["early stopping against reinit", "21.1", "2.51 times faster", _faster(run)],
        ["accuracy against dense, at early stopping", "13.5", "+0.3 points", _gain(run, "early_stop")],
        ["accuracy against dense, at the end", "13.5", "not stated as a number", _gain(run, "end")],
        ["still as good as dense, at early stopping", "3.6", "yes", _at_limit(run, "early_stop")],
        ["still as good as dense, at the end", "3.6", "not stated as a number", _at_limit(run, "end")],
        ["tickets match, at the end", "", "down to 3.6 %", _down_to(run)],
    ]
    return markdown(["claim", "weights left %", "paper", "ours"], rows)

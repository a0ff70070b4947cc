"""Run folders as tables: every measurement in long form, and one row per (run, arm, round) with verdicts and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import nan
from typing import Any

import pandas as pd

from lth_scale.report.ledger import COSTS, against_dense, cost, cumulative
from lth_scale.report.reading import Result, RunResults, family
from lth_scale.report.verdict import (
    Interval,
    comparison,
    interval,
    matching,
    mean_drop_under_02,
    within_one_sd,
)

SPLITS = ("train", "validation", "test")
TIDY_COLUMNS = ["run", "replicate", "arm", "round", "density", "split", "moment", "metric", "value"]


def moments_of(result: Result) -> dict[str, Result]:
    """The measured moments of one round by name: end, and early_stop or third_1 and third_2."""
    named: dict[str, Result] = {"end": result["end"]}
    if result.get("early_stop"):
        named["early_stop"] = result["early_stop"]
    for third in result.get("thirds") or []:  # those after the rewind point; the last is the end
        number = round(3 * third["step"] / result["end"]["step"])
        if number < 3:
            named[f"third_{number}"] = third
    return named


def _measurements(result: Result) -> Iterable[tuple[str, str, str, float]]:
    for moment, values in moments_of(result).items():
        for split in SPLITS:
            for metric, value in (values.get(split) or {}).items():
                yield split, moment, metric, value
        for metric in ("step", "steps_trained", "reached"):
            if metric in values:
                yield "", moment, metric, float(values[metric])
    yield "", "end", "density_all", result.get("density_all", nan)
    costs = cost(result)
    seconds = result["seconds"]
    timed = {f"{name}_seconds": float(value) for name, value in seconds.items()}
    for metric, value in {**costs, **timed}.items():
        yield "", "end", f"cost_{metric}", value


def tidy(runs: Sequence[RunResults]) -> pd.DataFrame:
    """Every measurement in long form: run, replicate, arm, round, density, split, moment, metric, value.

    ``moment`` is end, early_stop, third_1 or third_2; ``split`` is empty for what belongs to none, such as steps
    and costs (metrics ``cost_...``, of that round alone). Accuracies are in [0, 1], times in seconds.
    """
    rows = [
        (run.name, r["seed"], r["arm"], r["round"], r["density"], *measurement)
        for run in runs
        for r in run.results
        for measurement in _measurements(r)
    ]
    return pd.DataFrame(rows, columns=TIDY_COLUMNS)


def accuracies(run: RunResults, arm: str, number: int, moment: str = "end", split: str = "test") -> dict[int, float]:
    """Accuracy in percent by replicate; several draws of a control are averaged within their replicate."""
    found: dict[int, float] = {}
    for seed in run.seeds:
        draws = [moments_of(r).get(moment, {}).get(split) for r in run.draws(seed, arm, number)]
        values = [100 * d["accuracy"] for d in draws if d]
        if values:
            found[seed] = sum(values) / len(values)
    return found


def paired(first: dict[int, float], second: dict[int, float]) -> Interval:
    """The interval of first minus second over the replicates that have both."""
    return interval([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def bounds(name: str, value: Interval) -> dict[str, float]:
    """``NAME``, ``NAME_low`` and ``NAME_high``."""
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}


def _at_moment(run: RunResults, arm: str, number: int, moment: str) -> dict[str, Any]:
    mine = accuracies(run, arm, number, moment)
    dense = accuracies(run, *run.dense, moment)
    difference = paired(mine, dense)
    row: dict[str, Any] = {"n": len(mine), **bounds("test_accuracy", interval(list(mine.values())))}
    row |= {"test_accuracy_min": min(mine.values(), default=nan), "test_accuracy_max": max(mine.values(), default=nan)}
    if (arm, number) == run.dense:
        return row
    row |= {"pairs": difference.n, **bounds("difference", difference)}
    row["verdict"] = matching(difference, run.config.report.tolerance)
    row["mean_drop_under_0.2"] = mean_drop_under_02(difference)
    row["within_one_sd_of_dense"] = within_one_sd(difference, list(dense.values()))
    return row | _against_ticket(run, mine, arm, number, moment)


def _against_ticket(run: RunResults, mine: dict[int, float], arm: str, number: int, moment: str) -> dict[str, Any]:
    if arm in ("ticket", "dense_from_k"):
        return {}
    gain = paired(accuracies(run, "ticket", number, moment), mine)
    return {"ticket_pairs": gain.n, **bounds("ticket_minus", gain), "ticket_verdict": comparison(gain)}


def _early_stop(results: Sequence[Result]) -> dict[str, Any]:
    stops = [r["early_stop"] for r in results if r.get("early_stop")]
    if not stops or any(r.get("thirds") for r in results):  # loss falls at every drop: its minimum says little
        return {}
    steps = [float(s["step"]) for s in stops]
    return {
        "early_stop_step": sum(steps) / len(steps),
        "early_stop_step_min": min(steps),
        "early_stop_step_max": max(steps),
        "early_stop_steps_trained": sum(float(s["steps_trained"]) for s in stops) / len(stops),
        "early_stop_not_reached": sum(not s["reached"] for s in stops),
    }


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else nan


def _ledger(run: RunResults, results: Sequence[Result]) -> dict[str, float]:
    totals = [(r["seed"], cumulative(run, r["seed"], r["arm"], r["round"])) for r in results]
    ratios = [against_dense(run, seed, total) for seed, total in totals]
    absolute = {f"cumulative_{name}": _mean(t[name] for _, t in totals) for name in COSTS}
    return absolute | {f"cumulative_{name}_x_dense": _mean(t[name] for t in ratios) for name in COSTS}


def _row(run: RunResults, arm: str, number: int) -> dict[str, Any]:
    results = [r for r in run.results if r["round"] == number and family(r["arm"]) == arm]
    row: dict[str, Any] = {"run": run.name, "arm": arm, "round": number}
    row |= {
        "density": _mean(r["density"] for r in results),
        "density_all": _mean(r.get("density_all", nan) for r in results),
    }
    for moment in run.moments:
        prefix = "" if moment == "end" else f"{moment}_"
        row |= {prefix + key: value for key, value in _at_moment(run, arm, number, moment).items()}
    row |= _early_stop(results) | _ledger(run, results)
    row["flags"] = "; ".join(sorted({flag for r in results for flag in r.get("flags") or []}))
    return row


# What every table has, whatever is missing from its run.
SUMMARY_START = [
    "run", "arm", "round", "density", "density_all", "n", "test_accuracy", "test_accuracy_low", "test_accuracy_high",
    "test_accuracy_min", "test_accuracy_max", "pairs", "difference", "difference_low", "difference_high", "verdict",
    "mean_drop_under_0.2", "within_one_sd_of_dense", "ticket_pairs", "ticket_minus", "ticket_minus_low",
    "ticket_minus_high", "ticket_verdict",
]  # fmt: skip


def summary(runs: RunResults | Sequence[RunResults]) -> pd.DataFrame:
    """One row per (run, arm, round), densest first; accuracies and differences in percentage points on the test split.

    ``test_accuracy`` is the mean over ``n`` replicates at the end with its 95 % t-interval (``_low``, ``_high``) and
    range; ``difference`` is the paired difference to the same replicates' dense round with interval and ``verdict``;
    ``ticket_minus`` is ticket minus this control, ``ticket_verdict`` says better, worse or undecided.
    The same columns with the prefix ``early_stop_`` (or ``third_1_``, ``third_2_``) hold at those moments.
    ``early_stop_step`` is on the dense clock; with ``early_stop_not_reached`` > 0 it is a lower bound.
    ``cumulative_*`` sums the chain of rounds behind a result (mean over replicates); ``_x_dense`` in dense runs.
    """
    many = [runs] if isinstance(runs, RunResults) else runs
    rows = [_row(run, arm, number) for run in many for arm in run.arms for number in run.rounds(arm)]
    frame = pd.DataFrame(rows)
    return frame.reindex(columns=list(dict.fromkeys([*SUMMARY_START, *frame.columns])))

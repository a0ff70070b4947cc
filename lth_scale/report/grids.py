"""The page's tables: cells of text with a class, made from table.summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd

from lth_scale.report.figures import LABELS
from lth_scale.report.ledger import COSTS
from lth_scale.report.numbers import NONE, duration, scaled, value, with_interval
from lth_scale.report.study import Study


class Cell(NamedTuple):
    """Text, a class for its look, and a quieter second line."""

    text: str
    kind: str = ""
    below: str = ""


@dataclass(frozen=True)
class Grid:
    """One table: column groups (label, arm, names of columns), then rows whose first cells are those of ``keys``."""

    title: str
    note: str
    groups: Sequence[tuple[str, str, Sequence[str]]]
    rows: list[list[Cell]] = field(default_factory=list)
    open: bool = False
    keys: Sequence[str] = ("round", "left %")


CellsOf = Callable[[pd.Series | None, str], list[Cell]]


def _by_round(study: Study, arms: Sequence[str], cells: CellsOf, first: int = 0) -> list[list[Cell]]:
    lines = []
    for number in sorted(n for n in set(study.rows["round"]) if n >= first):
        at = study.rows[study.rows["round"] == number]
        line = [Cell(str(number)), Cell(f"{100 * at[at['arm'].isin(arms)]['density'].min():.2f}")]
        for arm in arms:
            found = at[at["arm"] == arm]
            line += cells(None if found.empty else found.iloc[0], arm)
        lines.append(line)
    return lines


def _split(text: str) -> tuple[str, str]:
    """An estimate and the interval behind it, for two lines of one cell."""
    mean, bracket, rest = text.partition(" [")
    return mean, f"[{rest}" if bracket else ""


def _verdict_cells(prefix: str, seeds: int) -> CellsOf:
    def cells(row: pd.Series | None, arm: str) -> list[Cell]:
        if row is None or row.get(f"{prefix}test_accuracy") != row.get(f"{prefix}test_accuracy"):
            return [Cell(NONE, "none")] * 3
        n = int(row[f"{prefix}n"])
        accuracy = Cell(value(row, f"{prefix}test_accuracy"), "", "" if n == seeds else f"n = {n}")
        verdict = row.get(f"{prefix}verdict")
        if not isinstance(verdict, str):
            return [accuracy, Cell("dense", "quiet"), Cell("")]
        mean, bounds = _split(with_interval(row, f"{prefix}difference"))
        return [accuracy, Cell(mean, "", bounds), Cell(verdict, f"badge {verdict.replace(' ', '-')}")]

    return cells


def verdicts(study: Study, moment: str) -> Grid:
    """Accuracy, paired difference and verdict of every arm at one moment."""
    prefix = "" if moment == "end" else f"{moment}_"
    note = (
        "Mean test accuracy in percent with half its 95 % interval; paired difference in points to the same "
        f"replicates' dense networks with its 95 % t-interval; tolerance {study.run.config.report.tolerance:g} points; "
        f"n = {len(study.run.seeds)} unless stated."
    )
    groups = [(arm, arm, ("accuracy", "against dense", "verdict")) for arm in study.drawn]
    rows = _by_round(study, study.drawn, _verdict_cells(prefix, len(study.run.seeds)))
    return Grid(f"Verdicts {LABELS[moment]}", note, groups, rows, open=moment == "end")


def controls(study: Study) -> Grid | None:
    """Ticket minus control, paired; None without controls."""
    arms = [arm for arm in study.drawn if arm != "ticket"]

    def cells(row: pd.Series | None, arm: str) -> list[Cell]:
        if row is None or not isinstance(row["ticket_verdict"], str) or row["ticket_minus"] != row["ticket_minus"]:
            return [Cell(NONE, "none")] * 2
        verdict = row["ticket_verdict"]
        kind = {"better": "matching", "worse": "not-matching"}.get(verdict, verdict.replace(" ", "-"))
        return [Cell(with_interval(row, "ticket_minus")), Cell(verdict, f"badge {kind}")]

    note = (
        "Paired difference in points of test accuracy at the end with its 95 % t-interval; "
        "better or worse where that excludes 0."
    )
    groups = [(f"minus {arm}", arm, ("points", "ticket is")) for arm in arms]
    return Grid("Ticket minus control", note, groups, _by_round(study, arms, cells, 1)) if arms else None


def literature(study: Study) -> Grid:
    """The two criteria of the literature, under their own names."""

    def answer(known: object) -> Cell:
        return (
            Cell(NONE, "none")
            if not isinstance(known, (bool, int))
            else Cell("yes" if known else "no", "" if known else "quiet")
        )

    def cells(row: pd.Series | None, arm: str) -> list[Cell]:
        names = ("mean_drop_under_0.2", "within_one_sd_of_dense")
        return [Cell(NONE, "none")] * 2 if row is None else [answer(row[name]) for name in names]

    note = (
        "What papers call matching, each on its own: the mean drops by less than 0.2 points; the mean is at most one "
        "standard deviation of the dense replicates below theirs. Neither enters the verdict."
    )
    groups = [(arm, arm, ("mean drop under 0.2", "within one sd")) for arm in study.drawn]
    return Grid("The literature's criteria", note, groups, _by_round(study, study.drawn, cells, 1))


def stopping(study: Study) -> Grid | None:
    """Early-stopping iterations; a lower bound where some replicate's validation loss still fell at the end."""
    if "early_stop_step" not in study.rows:
        return None

    def cells(row: pd.Series | None, arm: str) -> list[Cell]:
        if row is None or row["early_stop_step"] != row["early_stop_step"]:
            return [Cell(NONE, "none")] * 2
        bound = "≥ " if row["early_stop_not_reached"] > 0 else ""
        open_ones = f"{row['early_stop_not_reached']:.0f} not reached" if bound else ""
        return [
            Cell(f"{bound}{row[name]:.0f}", "", open_ones) for name in ("early_stop_step", "early_stop_steps_trained")
        ]

    note = (
        "The first minimum of validation loss: on the dense clock, and as steps trained by the round. Means; "
        "≥ is a lower bound, where a replicate's loss was still falling at its last evaluation."
    )
    groups = [(arm, arm, ("iteration", "steps trained")) for arm in study.drawn]
    return Grid("Early stopping", note, groups, _by_round(study, study.drawn, cells))


COST_LABELS = ("steps", "samples", "FLOPs, dense", "FLOPs, sparse", "device time", "stored")


def _amount(name: str, number: float) -> str:
    if number != number:
        return NONE
    unit = "B" if name == "bytes" else ""
    return duration(number) if name == "device_seconds" else scaled(number, unit)


def ledger(study: Study, arm: str) -> Grid:
    """The cumulative cost of an arm's results, also in dense runs."""

    def cells(row: pd.Series | None, arm: str) -> list[Cell]:
        if row is None:
            return [Cell(NONE, "none")] * len(COSTS)
        ratios = [row[f"cumulative_{name}_x_dense"] for name in COSTS]
        below = [f"{ratio:.3g} \N{MULTIPLICATION SIGN} dense" if ratio == ratio else "" for ratio in ratios]
        return [Cell(_amount(c, row[f"cumulative_{c}"]), "", b) for c, b in zip(COSTS, below, strict=True)]

    note = "Summed over the rounds that had to be trained to get there, mean of the replicates: " + (
        "the dense round and every ticket since."
        if arm == "ticket"
        else "those that made the mask, and the control's own."
    )
    return Grid(f"Cumulative cost: {arm}", note, [(arm, arm, COST_LABELS)], _by_round(study, [arm], cells))


def grids(study: Study) -> list[Grid]:
    """All tables of one run, the verdict first."""
    costs = [ledger(study, arm) for arm in study.run.local]
    several = [
        controls(study),
        *(verdicts(study, moment) for moment in study.run.moments[1:]),
        literature(study),
        stopping(study),
    ]
    return [verdicts(study, "end"), *(grid for grid in several if grid is not None), *costs]

"""The table that `lth run` and `lth report` end with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from lth_scale.report.reading import RunResults, read_run
from lth_scale.report.table import summary

MARKS = {
    "matching": ("✓", "green"),
    "not matching": ("✗", "red"),
    "undecided": ("?", "yellow"),
    "no verdict": ("·", "dim"),
}


def value(row: pd.Series, column: str = "test_accuracy") -> str:
    """``97.41 ±0.12``: a mean and half its 95 % interval, which one replicate has not."""
    half = (row[f"{column}_high"] - row[f"{column}_low"]) / 2
    return f"{row[column]:.2f}" + (f" ±{half:.2f}" if half == half else "")


def _cell(rows: pd.DataFrame, arm: str, number: int) -> Text:
    found = rows[(rows["arm"] == arm) & (rows["round"] == number)]
    if found.empty:
        return Text("-", style="dim")
    row = found.iloc[0]
    mark, style = MARKS.get(row["verdict"], (" ", ""))
    return Text.assemble(value(row), " ", (mark, style))


def terminal_table(run: Path | RunResults) -> Table:
    """One line per round: density, and each arm's mean test accuracy with half its 95 % interval and its verdict."""
    results = read_run(run)
    rows = summary(results)
    tolerance = results.config.report.tolerance
    marks = "  ".join(f"{mark} {name}" for name, (mark, _) in MARKS.items())
    table = Table(
        title=f"{results.name}: test accuracy (%) by weights left",
        caption=f"{marks}\nn = {len(results.seeds)}, tolerance {tolerance:g} points; ± is half the 95 % interval",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("round", justify="right")
    table.add_column("left %", justify="right")
    for arm in results.arms:
        table.add_column(arm, justify="right")
    for number in sorted(set(rows["round"])):
        density = 100 * rows[rows["round"] == number]["density"].iloc[0]
        cells = [_cell(rows, arm, number) for arm in results.arms]
        table.add_row(str(number), f"{density:.2f}", *cells)
    return table

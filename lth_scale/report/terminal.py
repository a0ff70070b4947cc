"""The tables that `lth run` and `lth report` end with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lth_scale.report import transfer
from lth_scale.report.compare import comparable, methods
from lth_scale.report.connectivity import connectivity_table
from lth_scale.report.numbers import LEGEND, MARKS, value
from lth_scale.report.reading import RunResults, read_run, read_runs
from lth_scale.report.study import Study
from lth_scale.report.table import summary
from lth_scale.report.words import headline


def _cell(row: pd.Series | None, narrow: bool = False) -> Text:
    """Accuracy, half its interval and the verdict's sign; on two lines where columns are narrow."""
    if row is None:
        return Text("-", style="dim")
    mark = MARKS.get(row["verdict"], (" ", ""))
    mean, _, half = value(row).partition(" ")
    return Text.assemble(mean, " ", mark, "\n", half) if narrow else Text.assemble(value(row), " ", mark)


def _found(rows: pd.DataFrame, **wanted: object) -> pd.Series | None:
    for name, wish in wanted.items():
        rows = rows[rows[name] == wish]
    return None if rows.empty else rows.iloc[0]


def _table(title: str, note: str) -> Table:
    return Table(title=title, caption=f"{LEGEND}\n{note}", title_justify="left", caption_justify="left")


def terminal_table(run: Path | RunResults) -> Group:
    """One line per round: density, and each arm's mean test accuracy with half its 95 % interval and its verdict.

    Below it, where there are some, the carried tickets beside their controls.
    """
    results = read_run(run)
    rows = summary(results)
    tolerance = results.config.report.tolerance
    notes = f"n = {len(results.seeds)}, tolerance {tolerance:g} points; ± is half the 95 % interval"
    table = _table(f"{results.name}: test accuracy (%) by weights left", notes)
    for name in ("round", "left %", *results.local):
        table.add_column(name, justify="right")
    rows = rows[rows["arm"].isin(results.local)]
    for number in sorted(set(rows["round"])):
        density = 100 * rows[rows["round"] == number]["density"].iloc[0]
        cells = [_cell(_found(rows, arm=arm, round=number)) for arm in results.local]
        table.add_row(str(number), f"{density:.2f}", *cells)
    return Group(table, *_transferred(results))


def _transferred(run: RunResults) -> list[Table]:
    """The carried tickets of one run, a line per source and density; empty without any."""
    found = transfer.cells(transfer.matrix([run]))
    if not found:
        return []
    table = _table(
        f"{run.name}: tickets carried over to {found[0].target}, test accuracy (%)",
        f"carried layers: {run.config.transfer.layers}; the others are fresh and whole in every column",
    )
    table.add_column("from", overflow="fold")
    for name in ("left %", *transfer.ROLES.values()):
        table.add_column(name, justify="right")
    for cell in found:
        cells = [_cell(cell.rows.get(role), narrow=True) for role in transfer.ROLES]
        table.add_row(cell.source, f"{100 * cell.density:.2f}", *cells)
    return [table]


def terminal(runs: Sequence[Path]) -> Iterator[RenderableType]:
    """All that a terminal is told of runs: each by itself, then what is said of all of them."""
    for run in runs:
        yield terminal_table(run)
        yield headline(run)
    yield terminal_methods(runs)
    if lines := connectivity_table(read_runs(runs)):
        yield lines


def terminal_methods(runs: Sequence[Path | RunResults]) -> Group:
    """Tickets of several runs on one data set, and their ablations, at equal density; else empty."""
    studies = [Study.of(run, pd.DataFrame()) for run in read_runs(runs)]
    known = [one for one in studies if len(one.arm("ticket"))]
    if not comparable(known):
        return Group()
    frame = methods(known)
    named = dict(zip(frame["run"], frame["method"], strict=True))
    note = "± is half the 95 % interval; ≈ is interpolated between a run's own densities"
    table = _table("Methods at equal density: test accuracy (%)", note)
    for name in ("left %", "arm", *named.values()):
        table.add_column(name, justify="left" if name == "arm" else "right")
    several = frame["arm"].nunique() > 1
    for _, rows in frame.groupby("density", sort=False):
        for arm in dict.fromkeys(rows["arm"]):
            cells = [_reading(_found(rows, arm=arm, run=run)) for run in named]
            table.add_row(f"{100 * rows['density'].iloc[0]:.2f}", arm, *cells)
        if several:
            table.add_section()
    return Group(table)


def _reading(row: pd.Series | None) -> Text:
    if row is None or row["measured"]:
        return _cell(row)
    return Text(f"≈ {row['test_accuracy']:.2f}", style="dim")

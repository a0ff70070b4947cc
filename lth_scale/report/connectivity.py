"""What was measured on lines between networks, by rewind point and density: instability, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from lth_scale.errors import UserError
from lth_scale.files import read_json
from lth_scale.paths import RunPaths
from lth_scale.report.grids import Cell, Grid
from lth_scale.report.plot import Plot
from lth_scale.report.reading import RunResults
from lth_scale.report.style import FAINT, Size, figure, run_look
from lth_scale.report.table import SPLITS
from lth_scale.report.verdict import NO_VERDICT, Interval, interval

LIMIT = 2.0  # points, below which a network is called stable (Frankle et al. 2020, section 3)
KINDS = {"pair": "children", "next": "rounds r-1 to r", "origin": "theta_k to end"}
COLUMNS = [
    *("run", "at", "k", "round", "density", "kind", "split", "n", "instability", "instability_low", "instability_high"),
    *("stored", "stored_low", "stored_high", "verdict"),
]
TOLD = ("train", "test")  # in a terminal
MARKS = {"stable": "✓", "not stable": "✗", "undecided": "?", NO_VERDICT: ""}

Line = Mapping[str, Any]


def read_lines(run: RunResults) -> list[Line]:
    """Every line.json of a run; raises UserError naming a damaged one."""
    found: list[Line] = []
    for path in RunPaths(run.root).lines():
        line = read_json(path)
        if not isinstance(line, dict) or line.get("schema") != 1 or "instability" not in line:
            raise UserError(f"{path} is damaged (not a line of schema 1); remove it to have it measured anew")
        found.append(line)
    return found


def by_seed(lines: Sequence[Line], how: str, split: str) -> Interval:
    """The interval over initialisations: pairs of one are not independent, so their mean is one value."""
    seeds: dict[int, list[float]] = {}
    for line in lines:
        if split in line["instability"][how]:
            seeds.setdefault(line["seed"], []).append(line["instability"][how][split])
    return interval([sum(values) / len(values) for _, values in sorted(seeds.items())])


def verdict(found: Interval) -> str:
    """``stable`` if the upper end of the interval is below 2 points, ``not stable`` if the lower is not."""
    if found.n < 2:
        return NO_VERDICT
    return "stable" if found.high < LIMIT else "not stable" if found.low >= LIMIT else "undecided"


def instabilities(runs: Sequence[RunResults]) -> pd.DataFrame:
    """One row per (run, round, kind, split), in percentage points of error.

    ``instability`` is with BatchNorm's statistics re-estimated, ``stored`` with those that were interpolated; each is
    the mean over ``n`` initialisations with its 95 % t-interval (``_low``, ``_high``). ``verdict`` is of the first.
    """
    rows = [row for run in runs for row in _rows(run)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(run: RunResults) -> list[dict[str, Any]]:
    lines = read_lines(run)
    keys = sorted({(line["round"], list(KINDS).index(line["kind"])) for line in lines})
    return [
        _row(run, [line for line in lines if (line["round"], line["kind"]) == (number, list(KINDS)[kind])], split)
        for number, kind in keys
        for split in SPLITS
    ]


def _row(run: RunResults, lines: Sequence[Line], split: str) -> dict[str, Any]:
    found, first = by_seed(lines, "reestimated", split), lines[0]
    row = {"run": run.name, "at": run.config.rewind.at, "k": first["k"], "round": first["round"], "split": split}
    row |= {"kind": first["kind"], "n": found.n, "verdict": verdict(found)}
    row |= {"density": sum(line["density"] for line in lines) / len(lines)}
    for name, value in (("instability", found), ("stored", by_seed(lines, "stored", split))):
        row |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
    return row


def text(row: pd.Series, name: str = "instability") -> str:
    """``1.32 [0.80, 1.84]``; without the interval for one initialisation, empty for none."""
    mean, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if mean != mean:
        return ""
    return f"{mean:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low == low else "")


def connectivity_table(runs: Sequence[RunResults]) -> Table | None:
    """One line per rewind point, round and kind; None where nothing was measured."""
    rows = instabilities(runs)
    if rows.empty:
        return None
    normed = bool((rows["stored"].fillna(0) != rows["instability"].fillna(0)).any())
    caption = (
        f"points of error, mean [95 % interval over initialisations]; {MARKS['stable']} below {LIMIT:g}, "
        f"{MARKS['not stable']} not, {MARKS['undecided']} undecided"
        + ("; stored: BatchNorm's statistics interpolated, not re-estimated" if normed else "")
    )
    table = Table(title="instability", caption=caption, title_justify="left", caption_justify="left")
    for column in ("k", "round", "left %", "between", "seeds"):
        table.add_column(column, justify="left" if column in ("k", "between") else "right")
    for split in TOLD:
        table.add_column(split, justify="right", no_wrap=True)
        if normed:
            table.add_column(f"{split}, stored", justify="right", no_wrap=True)
    for _, same in rows[rows["split"].isin(TOLD)].groupby(["at", "round", "kind"], sort=False):
        first, cells = same.iloc[0], list[str]()
        for _, row in same.iterrows():
            told = f"{text(row)} {MARKS[row['verdict']]}".strip()
            cells += [told, text(row, "stored")] if normed else [told]
        left = f"{100 * first['density']:.2f}"
        table.add_row(first["at"], str(first["round"]), left, KINDS[first["kind"]], str(first["n"]), *cells)
    return table


def grid(run: RunResults) -> Grid | None:
    """The page's table of one run; None where nothing was measured."""
    rows = instabilities([run])
    if rows.empty:
        return None
    made = []
    for _, same in rows.groupby(["round", "kind"], sort=False):
        first = same.iloc[0]
        line = [Cell(KINDS[first["kind"]]), Cell(str(first["round"])), Cell(f"{100 * first['density']:.2f}")]
        for _, row in same.iterrows():
            kind = {"stable": "badge matching", "not stable": "badge not-matching"}.get(row["verdict"], "badge")
            line += [Cell(text(row)), Cell(text(row, "stored")), Cell(row["verdict"], kind)]
        made.append(line)
    note = (
        "The highest error on the straight line between two networks minus the mean of its ends, in points, with 95 % "
        "t-intervals over initialisations; BatchNorm's statistics re-estimated at every point, or stored: interpolated "
        f"like weights. Stable: the interval of the first ends below {LIMIT:g} points."
    )
    groups = [(split, f"split-{split}", ("instability", "stored", "verdict")) for split in SPLITS]
    return Grid("Instability", note, groups, made, keys=("between", "round", "left %"))


def plots(runs: Sequence[RunResults]) -> list[Plot]:
    """The figure of several runs; none where fewer than two rewind points have children."""
    rows = instabilities(runs)
    if rows[rows["kind"] == "pair"]["k"].nunique() < 2:
        return []
    caption = (
        "Of children that share theta_k, on test; bands are 95 % t-intervals over initialisations, the grey line is "
        f"{LIMIT:g} points."
    )
    return [Plot("instability", "Instability against the rewind point", caption, lambda size: against_k(rows, size))]


def against_k(rows: pd.DataFrame, size: Size, split: str = "test") -> Figure:
    """Instability of children against the rewind point, one line for each round, with 95 % intervals."""
    made, grid = figure(size)
    axes = grid[0, 0]
    children = rows[(rows["kind"] == "pair") & (rows["split"] == split)]
    for place, (number, same) in enumerate(children.groupby("round")):
        color, marker, dash = run_look(place)
        ordered = same.sort_values("k")
        label = "dense" if number == 0 else f"round {number} ({100 * ordered['density'].iloc[0]:.1f} %)"
        axes.plot(ordered["k"], ordered["instability"], color=color, marker=marker, linestyle=dash, label=label)
        axes.fill_between(
            ordered["k"], ordered["instability_low"], ordered["instability_high"], color=color, alpha=0.17, linewidth=0
        )
    axes.axhline(LIMIT, color=FAINT, linewidth=1.0)
    axes.set_xlabel("rewind point k (steps)")
    axes.set_ylabel(f"instability on {split} (points)")
    axes.legend(loc="best")
    return made

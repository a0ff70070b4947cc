"""The matrix of carried tickets as a picture: one panel per density, sources down, targets across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from lth_scale.report.layers import spread
from lth_scale.report.numbers import MARKS, NONE, signed
from lth_scale.report.reading import SAME
from lth_scale.report.style import FAINT, PAPER, Size, figure
from lth_scale.report.transfer import Cell, cells

PANELS = 6
WIDEST = 10  # tolerances; differences beyond have the last colour
OWN = "own ticket"
# Of numbers on colours that are the same on a light and on a dark page, unlike the rest of the figure's ink.
DARK, LIGHT = "#16181d", "#fcfcfb"
Shown = dict[tuple[str, str], pd.Series]  # (source, target) -> a row of transfer.matrix


def panels(frame: pd.DataFrame) -> list[tuple[float, Shown]]:
    """(density, its cells), densest first; the target's own ticket on the diagonal, or in a row of its own."""
    found: list[tuple[float, list[Cell]]] = []
    for cell in sorted(cells(frame), key=lambda cell: -cell.density):
        if not found or cell.density < found[-1][0] * (1 - SAME):
            found.append((cell.density, []))
        found[-1][1].append(cell)
    return [(density, _shown(mine)) for density, mine in found]


def _shown(mine: Sequence[Cell]) -> Shown:
    shown = {(cell.source, cell.target): cell.rows["transfer"] for cell in mine}
    sources = {cell.source for cell in mine}
    for cell in mine:
        data = cell.target.partition(" ")[0]
        if "own" in cell.rows:
            shown.setdefault((data if data in sources else OWN, cell.target), cell.rows["own"])
    return shown


@dataclass(frozen=True)
class Look:
    """What all panels of a picture share.

    Args:
        sources: rows.
        targets: columns.
        colors: of differences in points, as
        norm: scales them.
        cell: width in inches.
    """

    sources: Sequence[str]
    targets: Sequence[str]
    colors: Colormap
    norm: Normalize
    cell: float

    @property
    def tight(self) -> bool:
        """Whether a number and its sign need two lines, and names are turned."""
        return self.cell < 0.6

    @property
    def font(self) -> float:
        """Points, so that a line fits its cell."""
        return min(9.0, 72 * self.cell / (5 if self.tight else 7) / 0.64)


def heatmap(frame: pd.DataFrame, tolerance: float, size: Size) -> Figure:
    """Paired difference to the target's dense network with a sign for the verdict; at most PANELS densities."""
    chosen = spread(panels(frame), PANELS)
    sources, targets = _names(chosen)
    narrow = size.width < 4.5
    columns = 1 if narrow or len(targets) > 4 else min(len(chosen), 2)
    rows = -(-len(chosen) // columns)
    norm, cut = _norm(chosen, tolerance)
    width = size.width - (1.2 if narrow else 2.1)  # without names and bar
    one = Look(sources, targets, matplotlib.colormaps["PuOr"], norm, width / columns / len(targets))
    height = 0.6 + 0.6 * narrow + rows * (0.75 + 0.6 * one.tight + 0.46 * len(sources))
    made, grid = figure(Size(size.width, height), columns=columns, rows=rows)
    for axes, (density, shown) in zip(grid.flat, chosen, strict=False):
        _frame(axes, one, first=axes in grid[:, 0])
        axes.set_title(f"{100 * density:.3g} % left")
        _fill(axes, shown, one)
    for axes in list(grid.flat)[len(chosen) :]:
        axes.set_axis_off()
    where: Any = {"location": "bottom", "aspect": 24, "pad": 0.01} if narrow else {"aspect": 28, "pad": 0.02}
    bar = made.colorbar(ScalarMappable(norm, one.colors), ax=list(grid.flat), fraction=0.06, extend=cut, **where)
    bar.set_label("difference to dense (points)")
    bar.outline.set_visible(False)
    return made


def _names(chosen: Sequence[tuple[float, Shown]]) -> tuple[list[str], list[str]]:
    """Targets in their order; sources in the same where they have one there, the others behind."""
    targets = list(dict.fromkeys(target for _, shown in chosen for _, target in shown))
    order = [target.partition(" ")[0] for target in targets]
    sources = dict.fromkeys(source for _, shown in chosen for source, _ in shown)
    return sorted(sources, key=lambda s: (order.index(s) if s in order else len(order), s == OWN)), targets


def _norm(chosen: Sequence[tuple[float, Shown]], tolerance: float) -> tuple[Normalize, str]:
    """As wide to both sides as the largest difference, and whether some are beyond: then cut at WIDEST tolerances."""
    values = [abs(float(row["difference"])) for _, shown in chosen for row in shown.values()]
    widest = max([v for v in values if v == v], default=tolerance)
    limit = max(tolerance, min(widest, WIDEST * tolerance))
    return Normalize(-limit, limit), "both" if widest > limit else "neither"


def _frame(axes: Axes, one: Look, first: bool) -> None:
    axes.set_xlim(0, len(one.targets))
    axes.set_ylim(len(one.sources), 0)
    axes.set_xticks(np.arange(len(one.targets)) + 0.5, one.targets if one.tight else map(_broken, one.targets))
    axes.set_yticks(np.arange(len(one.sources)) + 0.5, [_broken(source) * first for source in one.sources])
    axes.set_ylabel("tickets from" * first)
    axes.tick_params(length=0)
    axes.tick_params("x", rotation=90 * one.tight)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _broken(name: str) -> str:
    """A long name on several lines."""
    data, _, digest = name.partition(".")
    short = data if len(data) < 10 else data.replace("_", "_\n", 1)
    return "\n".join(filter(None, [*short.split(" "), digest]))


def _fill(axes: Axes, shown: Shown, one: Look) -> None:
    rows = [[shown.get((source, target)) for target in one.targets] for source in one.sources]
    values = np.array([[np.nan if row is None else float(row["difference"]) for row in line] for line in rows])
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=one.colors, norm=one.norm, edgecolors=PAPER, linewidth=1.5)
    for (i, j), value in np.ndenumerate(values):
        row = rows[i][j]
        space = "\n" if one.tight else " "
        text = NONE if row is None else f"{signed(value)}{space}{MARKS.get(row['verdict'], ('', ''))[0]}"
        color = FAINT if row is None else _ink(one.colors(one.norm(value)))
        axes.text(j + 0.5, i + 0.5, text, color=color, ha="center", va="center", fontsize=one.font)


def _ink(color: tuple[float, float, float, float]) -> str:
    """Dark on light, light on dark."""
    red, green, blue, _ = color
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else LIGHT

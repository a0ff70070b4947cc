"""Several runs at equal density: measured where a run has it, else interpolated on log density and marked so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose, log

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lth_scale.report.figures import Study
from lth_scale.report.style import Size, density_axis, figure, run_look

# Two runs' densities differ by a rounding of counts before they differ in what was asked for.
SAME = 0.005


@dataclass(frozen=True)
class Reading:
    """A run's mean test accuracy at one density, in percent; ``measured`` is False where it is interpolated."""

    value: float
    measured: bool


def at_density(rows: pd.DataFrame, density: float, column: str = "test_accuracy") -> Reading | None:
    """An arm's column at a density: measured, or linear in log density between neighbours; None outside its range."""
    known = rows[rows[column].notna()].sort_values("density")
    if known.empty:
        return None
    nearest = known.iloc[(np.log(known["density"]) - log(density)).abs().argmin()]
    if isclose(nearest["density"], density, rel_tol=SAME):
        return Reading(float(nearest[column]), True)
    if not known["density"].min() <= density <= known["density"].max():
        return None
    return Reading(float(np.interp(log(density), np.log(known["density"]), known[column])), False)


def equal_density(studies: Sequence[Study], column: str = "test_accuracy") -> list[tuple[float, list[Reading | None]]]:
    """(density, one reading per run) for each density of the first run's ticket, densest first."""
    tickets = [study.arm("ticket") for study in studies]
    return [(float(d), [at_density(rows, float(d), column) for rows in tickets]) for d in tickets[0]["density"]]


def comparison(studies: Sequence[Study], size: Size) -> Figure:
    """The tickets of several runs against density, as differences to each run's own dense networks."""
    made, grid = figure(size)
    axes = grid[0, 0]
    for position, study in enumerate(studies):
        rows, (color, marker, dash) = study.arm("ticket"), run_look(position)
        rows = rows[rows["round"] > 0]
        axes.fill_between(
            rows["density"], rows["difference_low"], rows["difference_high"], color=color, alpha=0.15, linewidth=0
        )
        axes.plot(rows["density"], rows["difference"], color=color, marker=marker, linestyle=dash, label=study.run.name)
        if len(rows) == 1:  # one point makes no band
            axes.vlines(rows["density"], rows["difference_low"], rows["difference_high"], color=color, linewidth=1.3)
    axes.axhline(0, color="#5f6570", linewidth=1.0)
    density_axis(axes, [d for study in studies for d in study.densities])
    axes.set_ylabel("ticket minus its dense network (points)")
    axes.legend(loc="lower left")
    return made

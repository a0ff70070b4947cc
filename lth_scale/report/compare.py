"""Several runs at equal density: measured where a run has it, else interpolated on log density and marked so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose, log, nan
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lth_scale import settings
from lth_scale.report.reading import SAME, RunResults
from lth_scale.report.study import Study
from lth_scale.report.style import Size, density_axis, figure, run_look

LONGEST = 40  # letters of what differs, beyond which runs are told apart by their folders
ARMS = ("ticket", "random", "reinit")  # a method, its mask permuted within layers, its mask with fresh weights
MEASURED = [
    "n", "test_accuracy", "test_accuracy_low", "test_accuracy_high",
    "pairs", "difference", "difference_low", "difference_high", "verdict",
]  # fmt: skip
COLUMNS = ["density", "run", "method", "arm", "measured", *MEASURED]


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


def comparable(studies: Sequence[Study]) -> bool:
    """Whether several runs see the same images, so that their accuracies stand side by side."""
    seen = {(data.name, data.classes, data.shape) for data in (study.run.config.data for study in studies)}
    return len(studies) > 1 and len(seen) == 1


def methods(studies: Sequence[Study]) -> pd.DataFrame:
    """Tidy: one row per (density of the first run's ticket, run, arm of ARMS), densest first; columns are COLUMNS.

    Where ``measured`` is False, only the means are given, as :func:`at_density` interpolates them; a run whose
    densities do not reach as far has no row. Accuracies and differences to dense are in percentage points, with their
    95 % t-intervals.
    """
    named = method_names([study.run for study in studies])
    rows = []
    for density in studies[0].arm("ticket")["density"]:
        for study, name in zip(studies, named, strict=True):
            for arm in ARMS:
                if row := _at(study.arm(arm), float(density)):
                    rows.append({"density": density, "run": study.run.name, "method": name, "arm": arm, **row})
    return pd.DataFrame(rows, columns=COLUMNS)


def _at(rows: pd.DataFrame, density: float) -> dict[str, Any]:
    reading, gap = at_density(rows, density), at_density(rows, density, "difference")
    if reading is None:
        return {}
    if not reading.measured:
        return {"measured": False, "test_accuracy": reading.value, "difference": gap.value if gap else nan}
    at = rows.iloc[(np.log(rows["density"]) - log(density)).abs().argmin()]
    return {"measured": True, **{name: at[name] for name in MEASURED}}


def method_names(runs: Sequence[RunResults]) -> list[str]:
    """What tells the configs of runs apart: ``criterion=snip``, ``oneshot``; the run's name where that is no help."""
    fields = [settings.binding(run.config) for run in runs]
    keys = list(dict.fromkeys(key for one in fields for key in one if key != "prune.densities"))
    differing = [key for key in keys if any(one.get(key) != fields[0].get(key) for one in fields)]
    named = [", ".join(filter(None, (_said(key, one.get(key)) for key in differing))) for one in fields]
    clear = len(set(named)) == len(named) and all(len(name) <= LONGEST for name in named)
    return [(name if clear else "") or run.name for name, run in zip(named, runs, strict=True)]


def _said(key: str, value: Any) -> str:
    section, _, field = key.partition(".")
    name = section if field in ("name", "at") else field
    if isinstance(value, bool) or value == []:
        return name * bool(value)
    return f"{name}={value}"


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
    worst = sorted(float(study.arm("ticket")["difference"].min()) for study in studies)
    if len(worst) > 2 and worst[0] < 2 * worst[1] < 0:  # one that falls to chance would flatten all others
        axes.set_ylim(bottom=2 * worst[1])
    axes.set_ylabel("ticket minus its dense network (points)")
    axes.legend(loc="lower left")
    return made

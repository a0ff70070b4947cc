"""The section of docs/results.md on a sweep over how much is pruned at once, and the small CSV that it is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tables import markdown

from lth_scale.errors import UserError
from lth_scale.report import read_run
from lth_scale.report.ledger import against_dense, cumulative
from lth_scale.report.reading import RunResults
from lth_scale.report.style import Size, density_axis, figure, run_look
from lth_scale.report.table import paired
from lth_scale.report.verdict import comparison, interval

NAME = "sweep_rates"
DENSITIES = (0.2, 0.1, 0.04, 0.02)
BUDGETS = (2, 4, 8, 16, 32, 64)
MARKS = {"worse": "▼", "better": "▲"}
COLUMNS = ["removed", "rewind", "replicate", "round", "density", "trainings", "validation", "test"]

TITLE = """\
## How aggressive may a round be?
The sweep [`mnist_rates`](../configs/sweeps/mnist_rates.yaml): LeNet-300-100 on MNIST, 1,000 steps a round, {n} seeds;
six ways to 2 % of the weights, from two rewind points. Costs are counted in trainings of the dense network.

"""
EQUAL_DENSITY = """\
**At equal density.** Read off each replicate's own chain, linear in log density between its rounds. Bold: the best on
the validation split, which is all that chooses. ▼ worse, ▲ better than the gentlest way, by the paired 95 % t-interval.

"""
EQUAL_COST = """\
**At equal training cost.** Of those that reach a density within so many trainings, the one that validation chooses, and
its accuracy on the test split.

"""

Chain = pd.DataFrame
"""The rounds of one way (removed, rewind), all replicates."""


def collect(runs: Sequence[Path]) -> pd.DataFrame:
    """One row for each ticket of the runs of a sweep; accuracies in percent. Raises UserError when there is none."""
    rows = [row for run in runs for row in _rows(read_run(run))]
    if not rows:
        raise UserError(f"{', '.join(map(str, runs))}: no round is done yet; there is nothing to collect")
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(COLUMNS[:4])


def _rows(run: RunResults) -> Iterator[tuple[object, ...]]:
    prune, at = run.config.prune, run.config.rewind.at
    removed = 1.0 if prune.oneshot else prune.rate
    for result in (each for each in run.results if each["arm"] == "ticket"):
        seed, number, end = result["seed"], result["round"], result["end"]
        # a one-shot mask needs the dense round alone, not the rounds at other densities
        chain = cumulative(run, seed, "ticket", 0 if prune.oneshot else number)
        trainings = against_dense(run, seed, chain)["steps"]
        if prune.oneshot and number:
            trainings += result["clock"]["steps"] / run.by_key[(seed, *run.dense)]["clock"]["steps"]
        accuracy = [round(100 * end[split]["accuracy"], 4) for split in ("validation", "test")]
        yield removed, at, seed, number, result["density"], round(trainings, 4), *accuracy


@dataclass(frozen=True)
class Reading:
    """One way at one density.

    Args:
        trainings: what it took to be there or below.
        validation: mean accuracy in percent.
        test: accuracy in percent by replicate.
    """

    trainings: float
    validation: float
    test: Mapping[int, float]

    @property
    def text(self) -> str:
        """Mean, and half the 95 % interval."""
        of = interval(list(self.test.values()))
        return f"{of.mean:.2f} ±{of.half:.2f}"

    def against(self, other: Reading) -> str:
        """The mark of a paired 95 % interval that leaves out 0."""
        return MARKS.get(comparison(paired(dict(self.test), dict(other.test))), "")


def reading(chain: Chain, density: float) -> Reading | None:
    """None where the chain does not reach so far."""
    if chain["density"].min() > density * 1.001:
        return None
    found: dict[str, dict[int, float]] = {"validation": {}, "test": {}}
    for seed, rows in chain.sort_values("density").groupby("replicate"):
        for split in ("validation", "test"):
            found[split][int(str(seed))] = float(np.interp(log(density), np.log(rows["density"]), rows[split]))
    trainings = chain[chain["density"] <= density * 1.001].groupby("replicate")["trainings"].min().mean()
    mean = float(np.mean(list(found["validation"].values())))
    return Reading(float(trainings), mean, found["test"])


def ways(frame: pd.DataFrame, rewind: str) -> dict[str, Chain]:
    """Name -> its rounds, the gentlest first."""
    mine = frame[frame["rewind"] == rewind]
    return {_name(float(str(removed))): rows for removed, rows in mine.groupby("removed")}


def _name(removed: float) -> str:
    return "one-shot" if removed == 1 else f"{100 * removed:g} %"


def section(results: Path) -> Iterator[str]:
    """Both comparisons, for each rewind point."""
    if not (path := results / f"{NAME}.csv").is_file():
        return
    frame = _read(path)
    yield TITLE.format(n=frame["replicate"].nunique())
    yield f"![Tickets of all rates](figures/{NAME}.svg)\n"
    yield EQUAL_DENSITY
    for rewind in frame["rewind"].unique():
        yield f"Rewound to {rewind}:\n\n" + _equal_density(ways(frame, rewind))
    yield EQUAL_COST
    for rewind in frame["rewind"].unique():
        yield f"Rewound to {rewind}:\n\n" + _equal_cost(ways(frame, rewind))
    notes = results / f"{NAME}.notes.md"
    yield f"Numbers: [`{path.name}`](../results/{path.name}).\n"
    if notes.is_file():
        yield f"**Interpretation (written by hand)**\n\n{notes.read_text().strip()}\n"


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"rewind": str})


def _best(readings: Mapping[str, Reading]) -> str | None:
    return max(readings, key=lambda name: readings[name].validation, default=None)


def _at(chains: Mapping[str, Chain], density: float) -> dict[str, Reading]:
    found = {name: reading(chain, density) for name, chain in chains.items()}
    return {name: one for name, one in found.items() if one}


def _equal_density(chains: Mapping[str, Chain]) -> str:
    lines = []
    for density in DENSITIES:
        found = _at(chains, density)
        best, first = _best(found), next(iter(found.values()), None)
        cells = [_cell(found.get(name), first, name == best) for name in chains]
        lines.append([f"{100 * density:g}", *cells])
    return markdown(["weights left %", *chains], lines)


def _cell(one: Reading | None, first: Reading | None, best: bool) -> str:
    if one is None or first is None:
        return ""
    text = f"{one.text} {one.against(first)}".strip()
    return f"**{text}**" if best else text


def _equal_cost(chains: Mapping[str, Chain]) -> str:
    lines = []
    for budget in BUDGETS:
        cells = []
        for density in DENSITIES:
            found = {name: one for name, one in _at(chains, density).items() if one.trainings <= budget}
            best = _best(found)
            cells.append(f"{best}: {found[best].text}" if best else "")
        lines.append([str(budget), *cells])
    return markdown(["trainings, at most", *(f"at {100 * density:g} %" for density in DENSITIES)], lines)


def drawn(results: Path) -> pd.DataFrame | None:
    """The numbers behind the picture, if there are any."""
    path = results / f"{NAME}.csv"
    return _read(path) if path.is_file() else None


def picture(frame: pd.DataFrame, size: Size) -> Figure:
    """Test accuracy against density, a panel for each rewind point: the means of the replicates."""
    rewinds = list(frame["rewind"].unique())
    made, grid = figure(size, columns=len(rewinds), sharey=True)
    for axes, rewind in zip(grid[0], rewinds, strict=True):
        for position, (name, chain) in enumerate(ways(frame, rewind).items()):
            means = chain[chain["round"] > 0].groupby("round")[["density", "test"]].mean()
            color, marker, dash = run_look(position)
            axes.plot(means["density"], means["test"], color=color, marker=marker, linestyle=dash, label=name, ms=3)
        dense = frame[(frame["rewind"] == rewind) & (frame["round"] == 0)]["test"].mean()
        axes.axhline(dense, color="#5f6570", linewidth=1.0)
        density_axis(axes, list(frame["density"]))
        axes.set_title(f"rewound to {rewind}")
    grid[0][0].set_ylabel("test accuracy (%)")
    grid[0][0].legend(title="removed a round", loc="lower left")
    return made

"""What is shown of several runs together, and of one run beside others: methods, carried tickets, overlaps of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from lth_scale.report import connectivity, matrices, overlaps, speed
from lth_scale.report.compare import comparable, comparison, methods
from lth_scale.report.grids import Grid
from lth_scale.report.heatmap import heatmap
from lth_scale.report.layers import blocks
from lth_scale.report.plot import Plot
from lth_scale.report.study import Study
from lth_scale.report.transfer import labels, matrix


@dataclass(frozen=True)
class Compared:
    """Several runs together; empty for one.

    Args:
        methods: compare.methods.
        overlaps: overlaps.between.
        plots: for the page.
        grids: for the page.
    """

    methods: pd.DataFrame = field(default_factory=pd.DataFrame)
    overlaps: pd.DataFrame = field(default_factory=pd.DataFrame)
    plots: list[Plot] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)


def compared(studies: Sequence[Study]) -> Compared:
    """The tickets of all runs that have some, carried ones too, and how alike their masks are."""
    known = [one for one in studies if len(one.arm("ticket"))]
    stability = connectivity.plots([one.run for one in studies])
    if len(known) < 2:
        return Compared(plots=stability)
    caption = "Mean paired difference to each run's own dense networks; bands are 95 % t-intervals."
    plots = [Plot("comparison", "Tickets of all runs", caption, lambda size: comparison(known, size)), *stability]
    table = methods(known) if comparable(known) else pd.DataFrame()
    alike = overlaps.between([one.run for one in known])
    grids = [matrices.methods(table)] if comparable(known) else []
    if sum(bool(labels(one.run)) for one in known) > 1:
        plots += transfer_plots(known)
        grids += filter(None, [matrices.transferred(matrix([one.run for one in known]))])
    note = "Replicates of equal seeds; tensors that both networks have; densities that both runs have."
    return Compared(table, alike, plots, grids + matrices.overlaps(alike, "runs", "How alike masks of runs are", note))


def transfer_plots(studies: Sequence[Study]) -> list[Plot]:
    """The heat map; none without carried tickets."""
    frame = matrix([one.run for one in studies])
    if frame["difference"].isna().all():
        return []
    tolerance = max(one.run.config.report.tolerance for one in studies)
    caption = (
        "Difference to the target's fresh dense network in points, and the verdict: \N{CHECK MARK} matching, "
        "\N{BALLOT X} not matching, ? undecided. The target's own ticket is on the diagonal, or in a row of its own."
    )
    return [Plot("transfer", "Transferred tickets", caption, lambda size: heatmap(frame, tolerance, size))]


def own_grids(one: Study) -> list[Grid]:
    """Of one run: size and speed of its tickets, carried ones, how alike its masks are, what its blocks keep."""
    found = matrices.overlaps(one.overlaps, "replicates", "How alike the masks are", matrices.NESTED)
    if not found and len(one.run.seeds) > 1 and one.overlaps.empty and max(one.run.rounds("ticket"), default=0):
        found = [Grid("How alike the masks are", matrices.GONE, [])]
    rounds = matrices.overlaps(one.overlaps, "rounds", "How alike masks of successive rounds are", "One replicate.")
    rest = connectivity.grid(one.run), matrices.transferred(matrix([one.run])), matrices.blocks(blocks(one.run))
    return [*speed.grids(one.run), *filter(None, rest), *found, *rounds]


def tables(studies: Sequence[Study], together: Compared) -> dict[str, pd.DataFrame]:
    """File name -> tidy table, of those that say something."""
    alike = [frame for frame in (*(one.overlaps for one in studies), together.overlaps) if len(frame)]
    found = {
        "transfer": matrix([one.run for one in studies]),
        "methods": together.methods,
        "connectivity": connectivity.instabilities([one.run for one in studies]),
        "masks": pd.concat(alike) if alike else pd.DataFrame(),
    }
    return {name: frame for name, frame in found.items() if len(frame)}

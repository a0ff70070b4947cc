"""One run, read and summarised once for everything that is shown of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pandas as pd

from lth_scale.report.layers import Layer, layers
from lth_scale.report.overlaps import COLUMNS, within
from lth_scale.report.reading import RunResults, curves
from lth_scale.report.table import summary


@dataclass(frozen=True)
class Study:
    """A run with everything that its figures and tables show.

    Args:
        run: its finished rounds.
        rows: table.summary of its own tickets and their controls, without tickets of other runs.
        curves: reading.curves of it.
        layers: theta_k and the sparsest ticket by layer; empty when they are not stored here.
        foreign: the rest of table.summary.
        overlaps: overlaps.within of it.
    """

    run: RunResults
    rows: pd.DataFrame
    curves: pd.DataFrame
    layers: tuple[Layer, ...] = ()
    foreign: pd.DataFrame = field(default_factory=pd.DataFrame)
    overlaps: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))

    @classmethod
    def of(cls, run: RunResults, curves: pd.DataFrame) -> Study:
        """What its results and curves alone say."""
        rows = summary(run)
        own = rows["arm"].isin(run.local)
        return cls(run, rows[own], curves, foreign=rows[~own])

    @classmethod
    def whole(cls, run: RunResults) -> Study:
        """With what its stored weights and masks say."""
        return replace(cls.of(run, curves([run])), layers=layers(run), overlaps=within(run))

    def arm(self, name: str) -> pd.DataFrame:
        """An arm's rows, densest first."""
        return self.rows[self.rows["arm"] == name].sort_values("density", ascending=False)

    @property
    def drawn(self) -> list[str]:
        """The arms that are lines over density."""
        return [arm for arm in self.run.local if arm != "dense_from_k"]

    @property
    def densities(self) -> list[float]:
        """All densities of the run."""
        return [float(d) for d in self.rows["density"]]

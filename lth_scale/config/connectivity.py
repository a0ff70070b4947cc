"""Whether and where the noise of training is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lth_scale.errors import require
from lth_scale.ranges import expand, numbers


@dataclass(frozen=True)
class Connectivity:
    """What is measured on straight lines between trained networks (Frankle et al. 2020).

    Args:
        children: trainings from theta_k that differ in their noise alone, compared in pairs; 0 means none.
        rounds: whose subnetworks have children, such as 0,4,8 (0 is the dense network); empty means 0 and the last.
        vary: what children do not share, the order of the images, their augmentation, or both.
        next: whether the ends of each two rounds in a row are compared (Paul et al. 2022).
        origin: whether each round's end is compared with theta_k.
    """

    children: int = 0
    rounds: tuple[int, ...] | str | int = ()
    vary: Literal["both", "order", "augment"] = "both"
    next: bool = False
    origin: bool = False

    def __post_init__(self) -> None:
        require(self.children == 0 or self.children > 1, "connectivity.children", self.children, "0, or 2 or more")
        object.__setattr__(self, "rounds", numbers("connectivity.rounds", self.rounds, "0,4-6"))

    def measured(self, last: int) -> tuple[int, ...]:
        """The rounds that have children, of a run whose last is ``last``. Raises UserError for one that comes later."""
        rounds = expand(self.rounds) or (0, last)
        require(max(rounds) <= last, "connectivity.rounds", list(rounds), f"in 0..{last}, the rounds that the run has")
        return tuple(sorted(set(rounds)))

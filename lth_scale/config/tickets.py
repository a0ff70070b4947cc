"""How tickets are found, and which replicates and controls there are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lth_scale.errors import UserError, at_least, require
from lth_scale.ranges import expand


@dataclass(frozen=True)
class Rates:
    """Fractions of the surviving weights removed per round, by kind of tensor; unset: prune.rate; 0: never."""

    conv: float | None = None
    fc: float | None = None
    output: float | None = None

    def __post_init__(self) -> None:
        for kind in ("conv", "fc", "output"):
            rate = getattr(self, kind)
            require(rate is None or 0 <= rate < 1, f"prune.rates.{kind}", rate, "in [0, 1)")


@dataclass(frozen=True)
class Prune:
    """How a mask becomes the next one.

    Args:
        rate: fraction of the surviving weights removed per round, in (0, 1).
        rates: the same by kind of tensor.
        rounds: R; rounds 0 (dense) to R are trained.
        to: instead of rounds: as many as it takes to reach this density.
        scope: global or layer (``lth list scopes``).
        criterion: what ranks the weights (``lth list criteria``).
        weights: which are ranked, those trained (raw) or their averages (ema, with train.ema).
        min_per_layer: weights that each tensor keeps at least.
    """

    rate: float = 0.2
    rates: Rates = field(default_factory=Rates)
    rounds: int = 16
    to: float | None = None
    scope: str = "global"
    criterion: str = "magnitude"
    weights: Literal["raw", "ema"] = "raw"
    min_per_layer: int = 0

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, "prune.rate", self.rate, "in (0, 1)")
        at_least(self, "prune", rounds=0, min_per_layer=0)
        require(self.to is None or 0 < self.to < 1, "prune.to", self.to, "in (0, 1)")


@dataclass(frozen=True)
class Rewind:
    """Where a later round starts.

    Args:
        at: the rewind point k: ``"0"``, ``"500it"`` or ``"2ep"``.
        keep: further points that the dense pass stores.
        recipe: what is restored (``lth list recipes``).
    """

    at: str = "0"
    keep: tuple[str, ...] = ()
    recipe: str = "continue"

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", str(self.at))
        object.__setattr__(self, "keep", tuple(map(str, self.keep)))


@dataclass(frozen=True)
class Run:
    """Which replicates and arms. Neither changes the others' results.

    Args:
        seeds: replicates: a list, or ranges such as ``0-4``.
        arms: what is trained at each density (``lth list arms``); ticket makes the masks.
    """

    seeds: tuple[int, ...] | str | int = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = ("ticket", "reinit", "random")

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "seeds", expand(self.seeds))
        except ValueError:
            raise UserError(f"run.seeds={self.seeds!r} is not valid; write numbers or ranges such as 0-4,7") from None
        require(bool(self.seeds), "run.seeds", self.seeds, "one number or more; a range runs upward, such as 0-4")
        object.__setattr__(self, "arms", tuple(dict.fromkeys(self.arms)))

    @property
    def replicates(self) -> tuple[int, ...]:
        """The seeds, expanded."""
        return expand(self.seeds)


@dataclass(frozen=True)
class Reinit:
    """Args: draws: how many fresh initialisations the reinit arm trains per ticket."""

    draws: int = 1

    def __post_init__(self) -> None:
        at_least(self, "reinit", draws=1)


@dataclass(frozen=True)
class Seeds:
    """The random streams; unset means the replicate's own seed."""

    init: int | None = None
    order: int | None = None
    augment: int | None = None
    mask: int | None = None
    dropout: int | None = None


@dataclass(frozen=True)
class Report:
    """Args: tolerance: points of test accuracy that a matching ticket may fall short of its dense network."""

    tolerance: float = 0.2

    def __post_init__(self) -> None:
        require(self.tolerance > 0, "report.tolerance", self.tolerance, "positive (points of accuracy)")

"""How tickets are found, and which replicates and controls there are."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from lth_scale.errors import at_least, require
from lth_scale.ranges import expand, numbers


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
        schedule: rate; target (one rate, so that prune.rounds rounds end at prune.to exactly); list (prune.densities).
        rounds: R; rounds 0 (dense) to R are trained.
        to: with schedule rate, instead of rounds: as many as it takes to reach this density; with target, the last one.
        densities: that of each round from 1 on, with schedule list.
        scope: how survivors are shared out among tensors (``lth list scopes``).
        nm: with scope n:m, how many of how many consecutive inputs survive; ``3:4,2:4``: in each of two rounds.
        criterion: what ranks the weights (``lth list criteria``).
        oneshot: every round's mask comes from the dense network, not from the round before.
        early_bird: the dense round ends at the first epoch whose mask, and those of the four before, differ from one
            another in less than this share of the weights; 0: never.
        batches: training batches for scores before training; 0: as many as hold 10 samples a class.
        weights: which are ranked, those trained (raw) or their averages (ema, with train.ema).
        min_per_layer: weights that each tensor keeps at least; with the scopes of channels, channels of each group.
    """

    rate: float = 0.2
    rates: Rates = field(default_factory=Rates)
    schedule: Literal["rate", "target", "list"] = "rate"
    rounds: int = 16
    to: float | None = None
    densities: tuple[float, ...] = ()
    scope: str = "global"
    nm: str = "2:4"
    criterion: str = "magnitude"
    oneshot: bool = False
    early_bird: float = 0.0
    batches: int = 0
    weights: Literal["raw", "ema"] = "raw"
    min_per_layer: int = 0

    def __post_init__(self) -> None:
        require(0 < self.rate < 1, "prune.rate", self.rate, "in (0, 1)")
        require(0 <= self.early_bird < 1, "prune.early_bird", self.early_bird, "in [0, 1)")
        at_least(self, "prune", rounds=0, min_per_layer=0, batches=0)
        require(self.to is None or 0 < self.to < 1, "prune.to", self.to, "in (0, 1)")
        object.__setattr__(self, "densities", tuple(self.densities))
        falling = all(0 < later < earlier for earlier, later in pairwise((1, *self.densities)))
        require(falling, "prune.densities", list(self.densities), "a falling list of numbers in (0, 1)")
        named = re.fullmatch(r"\d+:\d+(,\d+:\d+)*", self.nm) is not None
        ways = [m for _, m in self.patterns] if named else []
        left = [ways[0], *(n for n, _ in self.patterns), 0] if named else []
        require(
            len(set(ways)) == 1 and all(later < earlier for earlier, later in pairwise(left)),
            "prune.nm",
            self.nm,
            "N:M with 0 < N < M, such as 2:4, or several of one M with falling N, such as 3:4,2:4",
        )

    @property
    def patterns(self) -> tuple[tuple[int, int], ...]:
        """(n, m) of each round from 1 on, as ``nm`` has them."""
        return tuple((int(n), int(m)) for n, m in (word.split(":") for word in self.nm.split(",")))

    @property
    def group(self) -> int:
        """The m that all of ``patterns`` share: how many inputs are a group."""
        return self.patterns[0][1]


@dataclass(frozen=True)
class Rewind:
    """Where a later round starts.

    Args:
        at: the rewind point k: ``"0"``, ``"500it"`` or ``"2ep"``; auto: the smallest stable one of candidates.
        keep: further points that the dense pass stores.
        recipe: what is restored (``lth list recipes``).
        candidates: with at=auto: rewind points to try, in order, each with a run of its own.
        auto: with at=auto: what must be stable, the ticket of the last round (imp) or the dense network (dense).
    """

    at: str = "0"
    keep: tuple[str, ...] = ()
    recipe: str = "continue"
    candidates: tuple[str | int, ...] = ()
    auto: Literal["imp", "dense"] = "imp"

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", str(self.at))
        object.__setattr__(self, "candidates", tuple(map(str, self.candidates)))
        object.__setattr__(self, "keep", tuple(map(str, self.keep)))


@dataclass(frozen=True)
class Run:
    """Which replicates and arms. Neither changes the others' results.

    Args:
        seeds: replicates: a list, or ranges such as ``0-4``.
        arms: what is trained at each density (``lth list arms``); ticket makes the masks.
        patience: a replicate's chain ends after so many tickets in a row that do not match on validation; 0: never.
    """

    seeds: tuple[int, ...] | str | int = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = ("ticket", "reinit", "random")
    patience: int = 0

    def __post_init__(self) -> None:
        at_least(self, "run", patience=0)
        object.__setattr__(self, "seeds", numbers("run.seeds", self.seeds))
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

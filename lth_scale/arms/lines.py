"""What is measured on the straight line between two networks and trains nothing: its ends are what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from lth_scale.arms.base import Arm, Place, beside, drawn, label
from lth_scale.config import Config

POINTS = 30  # on a line, its ends among them


def _two_children(folder: str, number: int) -> tuple[Place, ...]:
    """``pair.0.2``: the ends of the first child and the third."""
    one, other = map(int, label(folder).split("."))
    folders = drawn("child", other + 1)
    return (folders[one], number), (folders[other], number)


def _pairs(config: Config, last: int) -> Iterator[Place]:
    asked = config.connectivity
    for one, other in combinations(range(asked.children), 2):
        yield from ((f"pair.{one}.{other}", number) for number in asked.measured(last))


def _two_rounds(folder: str, number: int) -> tuple[Place, ...]:
    """The ends of the ticket's round before and of this one (Paul et al. 2022, section 3)."""
    return ("ticket", number - 1), ("ticket", number)


def _one_round(folder: str, number: int) -> tuple[Place, ...]:
    """The end of the ticket's round; the other end of the line is theta_k."""
    return (("ticket", number),)


def _nexts(config: Config, last: int) -> Iterator[Place]:
    if config.connectivity.next:
        yield from (("next", number) for number in range(1, last + 1))


def _origins(config: Config, last: int) -> Iterator[Place]:
    if config.connectivity.origin:
        yield from (("origin", number) for number in range(last + 1))


beside.register("pair")(Arm(None, needs=_two_children, wanted=_pairs))
beside.register("next")(Arm(None, needs=_two_rounds, wanted=_nexts))
beside.register("origin")(Arm(None, needs=_one_round, wanted=_origins))

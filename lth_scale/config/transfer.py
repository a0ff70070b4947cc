"""Whether tickets of other runs are trained here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lth_scale.errors import require
from lth_scale.ranges import expand, numbers


@dataclass(frozen=True)
class Transfer:
    """Tickets from elsewhere, beside the run's own (Morcos et al. 2019).

    Args:
        layers: which are pruned, and come with a ticket; the others are fresh and whole in every arm. all: no transfer;
            body: all but the output layer; hidden: neither input nor output layer.
        sources: run folders, or packed tickets (a file, or a folder of them), of the same layer shapes. The run's own
            config names each as LABEL=PLACE, which binds the place to the config that it held tickets of.
        rounds: which rounds of the sources, such as 3,7,11; empty means all that this run has.
    """

    layers: Literal["all", "body", "hidden"] = "all"
    sources: tuple[str, ...] = ()
    rounds: tuple[int, ...] | str | int = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(dict.fromkeys(map(str, self.sources))))
        object.__setattr__(self, "rounds", numbers("transfer.rounds", self.rounds, "3-5,7"))
        require(0 not in expand(self.rounds), "transfer.rounds", self.rounds, "1 or more: round 0 is dense")

    @property
    def places(self) -> dict[str, str]:
        """Label -> place; only once all sources have a label."""
        return dict(pair for pair in map(labelled, self.sources) if pair[0])


def labelled(source: str) -> tuple[str, str]:
    """``mnist.1a2b3c4d=/some/run`` -> its label and its place; no label where there is none yet."""
    named = re.fullmatch(r"(\w+\.[0-9a-f]{8})=(.+)", source, re.DOTALL)
    return (named[1], named[2]) if named else ("", source)

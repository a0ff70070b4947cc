"""What plans and scopes know of a tensor: its name, shape and kind, and none of its values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Weights(Protocol):
    """Anything that describes a prunable tensor, as :class:`lth_scale.models.Prunable` and a shard do."""

    @property
    def name(self) -> str:
        """The parameter's name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the full tensor."""

    @property
    def kind(self) -> str:
        """conv, fc or output; prune.rates has a rate for each."""

    @property
    def numel(self) -> int:
        """How many weights."""


@dataclass(frozen=True)
class Tensor:
    """A tensor that is known by its shape only."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def numel(self) -> int:
        """How many weights."""
        return math.prod(self.shape)

"""Channels that go together, and where they lie in a network's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch

Kept = Sequence[torch.Tensor]
"""For each group, bool [size]: which channels stay."""


@dataclass(frozen=True)
class Axis:
    """Where channels lie in one tensor.

    Args:
        name: of the parameter or buffer, as in ``named_parameters`` and ``named_buffers``.
        dim: the dimension that they divide; it has ``Group.size * width`` entries.
        width: consecutive entries of each channel: more than 1 where a linear layer reads flattened [C, H, W].
    """

    name: str
    dim: int
    width: int

    def spread(self, kept: torch.Tensor) -> torch.Tensor:
        """bool [channels] -> bool [entries of the dimension]."""
        return kept.repeat_interleave(self.width)


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together, because something adds or multiplies them: the i-th of all axes.

    Args:
        size: channels.
        producers: weights whose rows compute them, at least one of which is prunable.
        followers: biases, and BatchNorm's parameters and statistics.
        consumers: weights with inputs that read them; all are prunable, so that a mask can cut a channel off.
    """

    size: int
    producers: tuple[Axis, ...]
    followers: tuple[Axis, ...]
    consumers: tuple[Axis, ...]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All places of the channels."""
        return self.producers + self.followers + self.consumers


@dataclass(eq=False)
class Space:
    """A range cut into equal channels; joined ones are one space (union-find), cut where all of them are cut."""

    size: int
    fixed: bool = False
    parent: Space | None = None

    def root(self) -> Space:
        """The space that this one has become."""
        space = self
        while space.parent is not None:
            space = space.parent
        return space

    def join(self, other: Space, pieces: int = 0) -> None:
        """Make both one; with ``pieces``, also cut no finer than into so many."""
        mine, theirs = self.root(), other.root()
        mine.size, mine.fixed = gcd(mine.size, theirs.size, pieces), mine.fixed or theirs.fixed
        if theirs is not mine:
            theirs.parent = mine

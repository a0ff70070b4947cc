"""What an arm is given and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from lth_scale.checkpoint import Composite, Source
from lth_scale.masks import Mask
from lth_scale.registry import Registry
from lth_scale.rewinding import Clock, Recipe, clock
from lth_scale.streams import derive, torch_generator


@dataclass(frozen=True)
class Sources:
    """What round ``number`` > 0 of an arm may start from. The states are opened on disk anew at every call.

    Args:
        number: the round.
        draw: which of several draws of the same control.
        mask_seed: the seed of the replicate's ``mask`` stream.
        mask: the ticket's mask of this round.
        theta_k: opens the state of the dense pass at the rewind point.
        theta_T: opens the final state of the ticket's round before.
        initial: a fresh initialisation from a seed, as a state at step 0.
        recipe: what is restored.
        total: T, the steps of the dense pass.
        fresh_noise: whether later rounds see new order and augmentation.
    """

    number: int
    draw: int
    mask_seed: int
    mask: Mask
    theta_k: Callable[[], Source]
    theta_T: Callable[[], Source]
    initial: Callable[[int], Source]
    recipe: Recipe
    total: int
    fresh_noise: bool

    def restored(self, recipe: Recipe) -> Source:
        """The source state of a recipe, not yet masked."""
        k, end = self.theta_k(), self.theta_T() if "T" in (recipe.weights, recipe.optimizer) else None
        pick = {"k": k, "T": end or k, "fresh": None}
        weights, buffers = end if recipe.weights == "T" and end else k, end if recipe.buffers == "T" and end else k
        return Composite(weights, buffers, pick[recipe.optimizer], self.clock(recipe).start)

    def clock(self, recipe: Recipe) -> Clock:
        """Steps k to T, or 0 to T where the recipe restarts the schedule."""
        return clock(recipe, self.theta_k().step, self.total, self.number, self.fresh_noise)

    def from_theta_k(self) -> Recipe:
        """The run's recipe with theta_k's weights: what controls train from that keep them."""
        if self.recipe.weights == "k":
            return self.recipe
        return replace(self.recipe, weights="k", buffers="k", optimizer="k")

    def fresh(self) -> Source:
        """An initialisation of this (replicate, round, draw)'s own."""
        return self.initial(derive(self.mask_seed, "reinit", self.number, self.draw))

    def whole(self) -> Clock:
        """All T steps from position 0 in the ticket's order, whatever k: the clock of arms with a new start."""
        return Clock(0, self.total, 0, self.clock(self.recipe).noise)

    def permuted(self) -> Mask:
        """The ticket's mask, each tensor's permuted within itself, drawn anew per round."""
        return Mask({name: self._permuted(name, kept) for name, kept in self.mask.items()})

    def _permuted(self, name: str, kept: torch.Tensor) -> torch.Tensor:
        generator = torch_generator(self.mask_seed, "mask", self.number, self.draw, name)
        return kept.flatten()[torch.randperm(kept.numel(), generator=generator)].reshape(kept.shape)


@dataclass(frozen=True)
class Start:
    """Where a round starts: ``state`` before the mask is applied, a name for it, and the steps to train."""

    mask: Mask
    state: Source
    source: str
    clock: Clock


@dataclass(frozen=True)
class Arm:
    """One way to train a mask.

    Args:
        start: where each round > 0 starts.
        rounds: every round of the ticket has one, or one alone (round 1) says all.
        draws: whether ``reinit.draws`` asks for several.
    """

    start: Callable[[Sources], Start]
    rounds: Literal["every", "one"] = "every"
    draws: bool = False


arms: Registry[Arm] = Registry("run.arms")


def split_draw(folder: str) -> tuple[str, int]:
    """``"reinit-2"`` -> ``("reinit", 2)``; the first draw carries no number."""
    name, _, draw = folder.partition("-")
    return name, int(draw or 0)

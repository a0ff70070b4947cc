"""What an arm is given and what it answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch

from lth_scale.checkpoint import Composite, Source
from lth_scale.config import Config
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
        mask: the ticket's mask of this round, or that of the source whose ticket this is.
        theta_k: opens the state of the dense pass at the rewind point.
        theta_T: opens the final state of the ticket's round before.
        initial: a fresh initialisation from a seed, as a state at step 0.
        carried: opens theta_k of the source, or of this run, with the layers fresh that do not come with a ticket.
        origin: the source's label, or words for this run.
        recipe: what is restored.
        permute: (mask, draw) -> another of the same structure; draw: (name, n) -> a permutation of n places.
        small: draws a fresh initialisation of the network that the mask leaves, in the coordinates of the whole one.
        cost: tells the multiply-adds of that network as a share of the whole one's.
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
    carried: Callable[[], Source]
    origin: str
    recipe: Recipe
    permute: Callable[[Mask, Callable[[str, int], torch.Tensor]], Mask]
    small: Callable[[], Source]
    cost: Callable[[], float]
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

    def unmasked(self) -> Mask:
        """All ones, over the tensors of the mask."""
        return Mask.ones({name: tuple(kept.shape) for name, kept in self.mask.items()})

    def permuted(self) -> Mask:
        """The ticket's mask, permuted within each tensor as its scope allows, drawn anew per round."""
        return self.permute(self.mask, self._permutation)

    def _permutation(self, name: str, size: int) -> torch.Tensor:
        return torch.randperm(size, generator=torch_generator(self.mask_seed, "mask", self.number, self.draw, name))


@dataclass(frozen=True)
class Start:
    """Where a round starts: ``state`` before the mask is applied, a name for it, and the steps to train."""

    mask: Mask
    state: Source
    source: str
    clock: Clock


Place = tuple[str, int]  # an arm's folder, and a round


def ticket_before(folder: str, number: int) -> tuple[Place, ...]:
    """What most arms need: the ticket's round before, which left the mask behind."""
    return (("ticket", number - 1),) if number else ()


@dataclass(frozen=True)
class Arm:
    """One way to train a mask, or something that is measured between the ends of others.

    Args:
        start: where each round but the dense one starts; None: nothing is trained, ``line.json`` is all it leaves.
        rounds: every round of the ticket has one, or one alone (round 1) says all.
        draws: whether ``reinit.draws`` asks for several.
        needs: (its folder, the round) -> what must be done before, of the same replicate, of no later round.
        wanted: (config, last round) -> what the config asks for; of arms that ``run.arms`` cannot name.
        varied: config -> the random streams of which each draw has its own.
        structured: its masks must be those of channels (``prune.scope``).
        foreign: there is one of each source in ``transfer.sources``, and its mask comes from there.
    """

    start: Callable[[Sources], Start] | None
    rounds: Literal["every", "one"] = "every"
    draws: bool = False
    needs: Callable[[str, int], tuple[Place, ...]] = ticket_before
    wanted: Callable[[Config, int], Iterable[Place]] = lambda config, rounds: ()
    varied: Callable[[Config], tuple[str, ...]] = lambda config: ()
    structured: bool = False
    foreign: bool = False


arms: Registry[Arm] = Registry("run.arms")
"""Those that ``run.arms`` names."""

beside: Registry[Arm] = Registry("arm")
"""Those that other config sections ask for."""


def arm_of(folder: str) -> Arm:
    """Of either kind; raises UserError when there is none."""
    name, _ = split_draw(folder)
    return arms[name] if name in arms else beside[name]


def split_draw(folder: str) -> tuple[str, int]:
    """An arm's folder -> (its name, which draw); the first draw carries no number.

    >>> split_draw("reinit-2"), split_draw("transfer.mnist.1a2b3c4d"), split_draw("transfer.mnist.1a2b3c4d-1")
    (('reinit', 2), ('transfer', 0), ('transfer', 1))
    """
    rest, _, draw = folder.rpartition("-") if re.search(r"-\d+$", folder) else (folder, "", "0")
    return rest.partition(".")[0], int(draw)


def label(folder: str) -> str:
    """What stands behind the name of an arm that is made for one purpose or another.

    >>> label("transfer.mnist.1a2b3c4d-1"), label("reinit-2")
    ('mnist.1a2b3c4d', '')
    """
    return re.sub(r"-\d+$", "", folder).partition(".")[2]


def drawn(name: str, draws: int) -> list[str]:
    """The folders of an arm's draws.

    >>> drawn("reinit", 3)
    ['reinit', 'reinit-1', 'reinit-2']
    """
    return [name if draw == 0 else f"{name}-{draw}" for draw in range(draws)]

"""Recipes: what a later round restores, and from where. "Late rewinding" has many meanings; each here has a name.

Sources of the presets: Frankle et al. 2020 (OpenLTH), Renda et al. 2020 (weight and learning-rate rewinding),
Han et al. 2015 (fine-tuning), and the common restart of the whole schedule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lth_scale.registry import Registry


@dataclass(frozen=True)
class Recipe:
    """What round r > 0 starts from. ``k`` is the rewind point of the dense pass, ``T`` the end of round r - 1.

    Args:
        weights: theta_k, or theta_T of the round before.
        buffers: likewise (BatchNorm statistics).
        optimizer: its state at k (masked), at T (masked), or fresh.
        schedule: the learning rate goes on from position k, restarts at 0, or stays at its last value.
        data: position k in the order of round 0, or the same position in an order of this round's own (fresh).
        dense_break: the dense pass drops its optimizer state at k too, so that all rounds treat k alike.
    """

    weights: Literal["k", "T"] = "k"
    buffers: Literal["k", "T"] = "k"
    optimizer: Literal["k", "T", "fresh"] = "k"
    schedule: Literal["k", "0", "last"] = "k"
    data: Literal["k", "fresh"] = "k"
    dense_break: bool = False


recipes: Registry[Recipe] = Registry("rewind.recipe")
recipes.register("continue")(Recipe())
recipes.register("openlth")(Recipe(optimizer="fresh", dense_break=True))
recipes.register("weight_rewinding")(Recipe(data="fresh"))
recipes.register("lr_rewinding")(Recipe(weights="T", buffers="T", optimizer="T", data="fresh"))
recipes.register("fine_tuning")(Recipe(weights="T", buffers="T", optimizer="T", schedule="last", data="fresh"))
recipes.register("restart")(Recipe(optimizer="fresh", schedule="0", data="fresh"))


@dataclass(frozen=True)
class Clock:
    """Which steps a round trains, on the dense clock.

    Args:
        start: the first step trained is start + 1; also the position in the data.
        stop: the last.
        schedule: the learning rate of step s is that of the dense pass at ``schedule + s - start``; None: its last one.
        noise: which order and augmentation the round sees; 0 is the dense round's.
    """

    start: int
    stop: int
    schedule: int | None
    noise: int

    @property
    def steps(self) -> int:
        """Steps trained."""
        return self.stop - self.start

    @property
    def thirds(self) -> list[int]:
        """The steps at 1/3 and 2/3 of the dense pass that this round trains, and the end."""
        return [step for step in (round(self.stop / 3), round(2 * self.stop / 3), self.stop) if step > self.start]

    def marks(self, drops: bool) -> list[int]:
        """Steps at which test is measured, whatever validation says: the end, and the thirds where the rate drops."""
        return self.thirds if drops else [self.stop]

    @staticmethod
    def dense(total: int) -> Clock:
        """Round 0's."""
        return Clock(0, total, 0, 0)


def clock(recipe: Recipe, k: int, total: int, number: int, fresh_noise: bool) -> Clock:
    """The clock of round ``number`` > 0: T - k steps, or all T where the schedule restarts."""
    noise = number if fresh_noise or recipe.data == "fresh" else 0
    start = 0 if recipe.schedule == "0" else k
    return Clock(start, total, None if recipe.schedule == "last" else start, noise)

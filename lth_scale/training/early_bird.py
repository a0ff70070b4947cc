"""Early-Bird: the dense round ends once the mask that it would leave stops changing (You et al. 2020, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytorch_lightning as pl

from lth_scale import world
from lth_scale.checkpoint import State
from lth_scale.masks import Mask
from lth_scale.shards import capture
from lth_scale.training.module import Classifier
from lth_scale.training.parts import Part

WINDOW = 5
"""Masks that must agree, drawn in as many consecutive epochs."""


@dataclass
class End:
    """Where a round ends; the dense one's may come earlier than planned.

    Args:
        step: the last.
        planned: the same, before anybody thought otherwise.
        distance: the largest among the last masks, if they were drawn.
    """

    step: int
    planned: int
    distance: float | None = None

    @property
    def early(self) -> bool:
        """Whether it came earlier."""
        return self.step < self.planned


class Ended(Exception):
    """Lightning ends a fit before its last step only by an exception."""


class EarlyBird(Part):
    """Draws the mask of round 1 at each epoch's end, and ends the round when the last five are close to one another.

    Args:
        drawn: state -> the mask; complete on the first rank.
        threshold: the distance that all pairs must stay below: the share of the weights in which two masks differ.
        every: steps of an epoch.
        first: the step from which on an end is allowed, as theta_k must be there by then.
        folder: where the masks are kept meanwhile, so that an interrupted round sees the same ones.
        end: moved when it is time.
    """

    def __init__(
        self, drawn: Callable[[State], Mask], threshold: float, every: int, first: int, folder: Path, end: End
    ) -> None:
        self._drawn, self._threshold, self._every, self._first = drawn, threshold, every, first
        self._folder, self._end = folder, end

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Draw and compare, at the end of an epoch."""
        if step % self._every:
            return
        epoch = step // self._every
        mask = self._drawn(capture(module.shards, step))
        world.on_first(lambda: mask.save(self._path(epoch)))
        if epoch < WINDOW:
            return
        self._end.distance = world.on_first(lambda: self._spread(epoch))
        if self._end.distance < self._threshold and step >= self._first:
            self._end.step = min(step, self._end.step)

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch_{epoch:04d}.safetensors"

    def _spread(self, epoch: int) -> float:
        """The largest distance between two of the last masks."""
        masks = [Mask.load(self._path(number)) for number in range(epoch - WINDOW + 1, epoch + 1)]
        return max(first.distance(second) for first, second in combinations(masks, 2))


class Leave(Part):
    """Ends the fit at an early end; the last of all parts."""

    def __init__(self, end: End) -> None:
        self._end = end

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Everything of this step is done and saved."""
        if self._end.early and step == self._end.step:
            raise Ended

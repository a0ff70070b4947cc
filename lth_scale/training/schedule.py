"""The learning rate as a pure function of the step on the dense clock: nothing of it needs to be stored."""

from __future__ import annotations

import math

from lth_scale.config import Train
from lth_scale.duration import steps


class Schedule:
    """Learning rate of each step.

    Args:
        config: optimizer and schedule settings.
        total: T, steps of the dense pass.
        steps_per_epoch: to read durations in epochs.
    """

    def __init__(self, config: Train, total: int, steps_per_epoch: int) -> None:
        self._config, self._total = config, total
        self._warmup = steps(config.warmup, steps_per_epoch, "train.warmup")
        self._milestones = [steps(m, steps_per_epoch, "train.milestones") for m in config.milestones]

    def at(self, step: int) -> float:
        """The rate used by the optimizer step that takes the model from ``step`` to ``step + 1``."""
        rate = self._config.lr
        if step < self._warmup:
            return rate * (step + 1) / self._warmup
        if self._config.schedule == "multistep":
            return float(rate * self._config.gamma ** sum(step >= m for m in self._milestones))
        if self._config.schedule == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * (step - self._warmup) / max(1, self._total - self._warmup)))
        return rate

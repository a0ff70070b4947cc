"""What a round does beside training comes in parts; all of them are one Lightning callback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer

from lth_scale.training.module import Classifier
from lth_scale.training.strategies import adapter


class Part:
    """One thing a round does beside training; a part overrides what it needs.

    ``module.shards`` is what this rank holds of the model.
    """

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Before the first step."""

    def on_gradients(self) -> None:
        """After the backward pass of a global batch, before clipping and the optimizer's step."""

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """After the step that brought the model to ``step``."""

    def on_end(self, trainer: pl.Trainer) -> None:
        """After the last step."""


class Parts(pl.Callback):
    """All parts as one callback, in order: Lightning pays for every hook of every callback at every step.

    Args:
        parts: what is done, in this order.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Lightning's hook; the strategy is set up by now."""
        module.shards = adapter(trainer, module.model)
        for part in self._parts:
            part.on_start(trainer, module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Optimizer) -> None:
        """Lightning's hook, inside the closure."""
        for part in self._parts:
            part.on_gradients()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Lightning's hook; a step ends with its last micro-batch."""
        if (index + 1) % trainer.accumulate_grad_batches == 0:
            for part in self._parts:
                part.on_step(trainer, module, module.step)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Lightning's hook."""
        for part in self._parts:
            part.on_end(trainer)

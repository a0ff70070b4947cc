"""An exponential moving average of the weights: kept beside them, stored, rewound and masked like optimizer state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch

from lth_scale.shards import Shards
from lth_scale.training.module import Classifier
from lth_scale.training.parts import Part


class Average(Part):
    """Keeps an exponential moving average of the weights; what is pruned is zero in it too, by the start and the steps.

    Args:
        decay: share of the average that stays at each step.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """It begins at the weights, unless the start state has one."""
        if not module.shards.averages:
            start_averages(module.shards)

    @torch.no_grad()
    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """One step of it."""
        for shard in module.shards.local():
            module.shards.averages[shard.name].lerp_(shard.weights, 1 - self._decay)


def start_averages(shards: Shards) -> None:
    """Let the averages begin at the weights."""
    shards.averages = {shard.name: shard.weights.detach().clone() for shard in shards.local()}


@contextmanager
def averaged(shards: Shards) -> Iterator[None]:
    """The model computes with the averages inside, where there are any."""
    _swap(shards)
    try:
        yield
    finally:
        _swap(shards)


@torch.no_grad()
def _swap(shards: Shards) -> None:
    for shard in shards.local():
        if shard.name in shards.averages:
            average, weights = shards.averages[shard.name], shard.weights.clone()
            shard.weights.copy_(average)
            average.copy_(weights)
    if shards.averages:
        shards.refresh()

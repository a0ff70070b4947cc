"""Pruned weights stay exactly zero: gradients are masked before the optimizer's step, weights after it.

With masked gradients the optimizer's state of a pruned weight stays zero, so momentum cannot revive it, and clipping
does not count it; the multiplication after the step makes the zeros hold by construction, whatever the optimizer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lth_scale.shards import LocalShard, optimizer_state


class Masking:
    """The mask at work on this rank.

    Args:
        shards: the rank's parts of the parameters.
        mask: name -> bool tensor of the parameter's shape, True where the weight is kept.
    """

    def __init__(self, shards: Sequence[LocalShard], mask: Mapping[str, torch.Tensor]) -> None:
        self._shards = [shard for shard in shards if shard.name in mask]
        # Float factors: on the CPU multiplying is several times faster than masked_fill_ (docs/decisions.md).
        self._factors = [torch.empty_like(s.weights).copy_(mask[s.name]) for s in self._shards]
        self._handles: list[Any] = []

    def install(self, optimizers: Sequence[Optimizer]) -> None:
        """Mask the weights after every step of these optimizers, from now on."""
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self.weights()))

    def remove(self) -> None:
        """Undo :meth:`install`."""
        while self._handles:
            self._handles.pop().remove()

    @torch.no_grad()
    def gradients(self) -> None:
        """Multiply the gradients by the mask; call it after the backward pass and before clipping."""
        pairs = [
            (s.parameter.grad, f)
            for s, f in zip(self._shards, self._factors, strict=True)
            if s.parameter.grad is not None
        ]
        if pairs:
            torch._foreach_mul_([gradient for gradient, _ in pairs], [factor for _, factor in pairs])

    @torch.no_grad()
    def weights(self) -> None:
        """Multiply the weights by the mask."""
        if self._shards:
            torch._foreach_mul_([shard.weights for shard in self._shards], self._factors)

    def revived(self, optimizers: Sequence[Optimizer]) -> dict[str, int]:
        """Pruned places whose weight or optimizer state is not exactly zero, by parameter; empty is the proof.

        NaN is not counted: a diverged network has it everywhere, and the round says so.
        """
        found: dict[str, int] = {}
        for shard, factor in zip(self._shards, self._factors, strict=True):
            held = [t for t in optimizer_state(shard, optimizers).values() if t.shape == factor.shape]
            wrong = sum(
                int(((factor == 0) & (tensor != 0) & (tensor == tensor)).sum()) for tensor in [shard.weights, *held]
            )
            if wrong:
                found[shard.name] = wrong
        return found

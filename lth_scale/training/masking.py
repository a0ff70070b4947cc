"""Pruned weights stay exactly +0.0: gradients are masked before the optimizer's step, weights after it.

With masked gradients the optimizer's state of a pruned weight stays zero, so momentum cannot revive it, and clipping
does not count it; masking after the step makes the zeros hold by construction, whatever the optimizer does. The mask is
a bitwise AND: multiplying would leave -0.0, and let an infinite or NaN gradient through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lth_scale.masks import Mask
from lth_scale.shards import LocalShard, Shards, chunks, held

SMALL = 50_000_000  # local weights up to which a mask may take as many bytes as the weights, which is faster on a CPU
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masking:
    """The mask at work on this rank.

    Args:
        shards: what the rank holds.
        mask: of the whole parameters; this rank's ranges of it are read.
    """

    def __init__(self, shards: Shards, mask: Mask) -> None:
        self._shards = shards
        self._parts = {s.name: s for s in shards.local() if s.name in mask and len(s)}
        small = sum(map(len, self._parts.values())) <= SMALL
        self._masks = {name: _at_work(shard, mask, small) for name, shard in self._parts.items()}
        self._handles: list[Any] = []

    def install(self) -> None:
        """Mask the weights after every step of the optimizers, from now on."""
        for optimizer in self._shards.optimizers:
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self.weights()))

    def remove(self) -> None:
        """Undo :meth:`install`."""
        while self._handles:
            self._handles.pop().remove()

    @torch.no_grad()
    def gradients(self) -> None:
        """Zero the gradients of pruned weights; call it after the backward pass and before clipping."""
        for name, gradient in self._shards.gradients().items():
            if name in self._masks:
                _apply(gradient, self._masks[name])

    @torch.no_grad()
    def weights(self) -> None:
        """Zero the pruned weights."""
        for name, shard in self._parts.items():
            _apply(shard.weights, self._masks[name])

    def revived(self) -> dict[str, int]:
        """Pruned places on this rank whose weight or optimizer state is not exactly +0.0, by parameter.

        NaN in the optimizer's state is not counted: a diverged network has it everywhere, and the round says so.
        """
        found: dict[str, int] = {}
        for name, shard in self._parts.items():
            beside = [t for t in held(self._shards, shard).values() if t.shape == shard.weights.shape]
            wrong = sum(_nonzero(t, self._masks[name], t is not shard.weights) for t in [shard.weights, *beside])
            if wrong:
                found[name] = wrong
        return found


def _at_work(shard: LocalShard, mask: Mask, small: bool) -> torch.Tensor:
    """All ones in the bits of kept weights (integers as wide as the weights), or True where a weight is dropped."""
    kept = torch.from_numpy(mask.range(shard.name, shard.offset, shard.offset + len(shard))[:])
    like = shard.weights
    if small:
        made = torch.empty_like(like, dtype=INTEGERS[like.element_size()])
        return made.copy_(kept.view(like.shape)).neg_()
    return torch.empty_like(like, dtype=torch.bool).copy_(kept.logical_not_().view(like.shape))


def _apply(tensor: torch.Tensor, mask: torch.Tensor) -> None:
    if mask.dtype == torch.bool:
        tensor.masked_fill_(mask, 0)
    else:
        tensor.view(INTEGERS[tensor.element_size()]).bitwise_and_(mask)


def _nonzero(tensor: torch.Tensor, mask: torch.Tensor, forgive_nan: bool) -> int:
    wrong = 0
    for values, work in _together(tensor, mask):
        dropped = work if work.dtype == torch.bool else work == 0
        dirty = dropped & (values.view(INTEGERS[values.element_size()]) != 0)
        wrong += int((dirty & (values == values) if forgive_nan else dirty).sum())
    return wrong


def _together(tensor: torch.Tensor, mask: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for (_, values), (_, work) in zip(chunks(tensor), chunks(mask), strict=True):
        yield values, work

"""Shard: the part of one prunable tensor that this process holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from lth_scale.masks import Bits

KINDS = ("conv", "fc", "output")


@dataclass(frozen=True, eq=False)
class Shard:
    """A flat range of one prunable tensor; the whole tensor where nothing is sharded.

    Args:
        name: the parameter's name.
        weights: float32 [n], the range's values; only read.
        offset: index of the range's first weight in the flattened tensor.
        numel: weights of the whole tensor.
        kept: n bits, the current mask on the range; None means everything is kept.
        kind: conv, fc or output; prune.rates has a rate for each.
    """

    name: str
    weights: torch.Tensor
    offset: int
    numel: int
    kept: Bits | None
    kind: str

    def __post_init__(self) -> None:
        assert self.weights.dim() == 1 and self.weights.dtype == torch.float32, f"{self.name}: not a flat float32 range"
        assert 0 <= self.offset <= self.offset + len(self) <= self.numel, f"{self.name}: range beyond its tensor"
        assert self.kind in KINDS, f"{self.name}: kind {self.kind!r} is not one of {KINDS}"
        if self.kept is not None:
            assert len(self.kept) == len(self), f"{self.name}: a mask of {len(self.kept)} bits for {len(self)} weights"

    def __len__(self) -> int:
        return self.weights.numel()

    def piece(self, where: slice) -> Shard:
        """Consecutive weights of the range, sharing its memory; for scoring (``offset`` stays as it is)."""
        kept = None if self.kept is None else self.kept.range(where.start, where.stop)
        return replace(self, weights=self.weights[where], kept=kept)

    def pick(self, places: torch.Tensor) -> Shard:
        """Copies of the weights at int64 places of the range; for scoring (``offset`` stays as it is)."""
        kept = None if self.kept is None else Bits.pack(self.kept.at(places.cpu().numpy()))
        return replace(self, weights=self.weights.index_select(0, places), kept=kept)

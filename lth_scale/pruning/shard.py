"""Shard: the part of one prunable tensor that this process holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
        shape: of the whole tensor.
        kept: n bits, the current mask on the range; None means everything is kept.
        kind: conv, fc or output; prune.rates has a rate for each.
        extra: what the criterion needs beside the weights, float32 [n] each, by the names it gives.
    """

    name: str
    weights: torch.Tensor
    offset: int
    shape: tuple[int, ...]
    kept: Bits | None
    kind: str
    extra: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for values in (self.weights, *self.extra.values()):
            assert values.dim() == 1 and values.dtype == torch.float32, f"{self.name}: not a flat float32 range"
            assert len(values) == len(self), f"{self.name}: {len(values)} values for {len(self)} weights"
        assert 0 <= self.offset <= self.offset + len(self) <= self.numel, f"{self.name}: range beyond its tensor"
        assert self.kind in KINDS, f"{self.name}: kind {self.kind!r} is not one of {KINDS}"
        if self.kept is not None:
            assert len(self.kept) == len(self), f"{self.name}: a mask of {len(self.kept)} bits for {len(self)} weights"

    def __len__(self) -> int:
        return self.weights.numel()

    @property
    def numel(self) -> int:
        """Weights of the whole tensor."""
        return math.prod(self.shape)

    def piece(self, where: slice) -> Shard:
        """Consecutive weights of the range, sharing its memory; for scoring (``offset`` stays as it is)."""
        kept = None if self.kept is None else self.kept.range(where.start, where.stop)
        extra = {name: values[where] for name, values in self.extra.items()}
        return replace(self, weights=self.weights[where], kept=kept, extra=extra)

    def pick(self, places: torch.Tensor) -> Shard:
        """Copies of the weights at int64 places of the range; for scoring (``offset`` stays as it is)."""
        kept = None if self.kept is None else Bits.pack(self.kept.at(places.cpu().numpy()))
        extra = {name: values.index_select(0, places.to(values.device)) for name, values in self.extra.items()}
        return replace(self, weights=self.weights.index_select(0, places), kept=kept, extra=extra)

"""Candidates: the weights that compete in one pool, as integer keys in order of removal, read in cache-sized blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lth_scale.pruning.ranks import Ranks
from lth_scale.pruning.shard import Shard

Keys = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

BLOCK = 1 << 17  # weights per step, whole bytes of a mask: scores and comparisons stay in the L2 cache
INFINITY = 0x7F800000  # key of +inf, the largest that is not a NaN


@dataclass(frozen=True)
class Candidates:
    """This process's part of a pool. A key is a score's float32 bits as int32: it orders like the score, which is >= 0.

    Args:
        shards: one per tensor, in the order that decides ties; an empty range where nothing is held here.
        score: the criterion's.
        ranks: the shard group.
    """

    shards: Sequence[Shard]
    score: Callable[[Shard], torch.Tensor]
    ranks: Ranks

    def keys(self, shard: Shard) -> Keys:
        """int32 keys of all weights of a shard, removed ones too."""
        keys: Keys = self.score(shard).detach().contiguous().view(torch.int32).cpu().numpy()
        return keys

    def blocks(self, shard: Shard) -> Iterator[tuple[slice, Keys, Bools | None]]:
        """(Where in the shard, keys, current mask or None) of consecutive pieces."""
        for first in range(0, len(shard), BLOCK):
            where = slice(first, min(first + BLOCK, len(shard)))
            piece = shard.piece(where)
            yield where, self.keys(piece), None if piece.kept is None else piece.kept[:]

    def survivors(self) -> Iterator[Keys]:
        """Keys of the surviving weights, block by block."""
        for shard in self.shards:
            yield from (keys if kept is None else keys[kept] for _, keys, kept in self.blocks(shard))


def alive(shard: Shard) -> int:
    """How many weights of the shard survive."""
    return len(shard) if shard.kept is None else shard.kept.count()


def has_nan(keys: Keys) -> bool:
    """Whether some key is no valid score: a NaN, whatever its sign."""
    return bool(keys.size and keys.view(np.uint32).max() > INFINITY)

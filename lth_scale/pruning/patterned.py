"""n:m sparsity: of every m consecutive inputs of an output, the n with the largest scores survive."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lth_scale.bits import size_in_bytes
from lth_scale.masks import Bits
from lth_scale.pruning.candidates import BLOCK, Bools, Candidates, has_nan
from lth_scale.pruning.ranks import Counts
from lth_scale.pruning.shard import Shard


def patterned(pool: Candidates, shard: Shard, pattern: tuple[int, int]) -> tuple[Bits, bool]:
    """(The next mask on the shard's range, whether a NaN was seen here); collective.

    Groups run along the second dimension, the inputs, so that those of a convolution do not lie side by side. Whole
    outputs are put together from all processes, some at a time, and each process keeps its part of their mask.
    """
    shape = (shard.shape[1], math.prod(shard.shape[2:]))
    made, nan = np.zeros(size_in_bytes(len(shard)), np.uint8), False
    for start, stop in _outputs(shard):
        first, last = (min(max(edge - shard.offset, 0), len(shard)) for edge in (start, stop))
        piece = shard.piece(slice(first, last))
        mine = pool.keys(piece)
        nan |= has_nan(mine)
        keys = np.zeros(stop - start, np.int64)
        place = slice(first + shard.offset - start, last + shard.offset - start) if last > first else slice(0, 0)
        keys[place] = mine.astype(np.int64) + 1  # survivors of score 0 before those that are gone
        if piece.kept is not None:
            keys[place][~piece.kept[:]] = 0
        kept = _largest(pool.ranks.sum(keys).reshape(-1, *shape), *pattern)
        Bits.pack(kept.reshape(-1)[place]).place(made, first)
    return Bits(made, 0, len(shard)), nan


def _outputs(shard: Shard) -> Iterator[tuple[int, int]]:
    """Flat ranges of the tensor that hold whole outputs, about BLOCK weights each."""
    row = math.prod(shard.shape[1:])
    size = max(1, BLOCK // row) * row
    for start in range(0, shard.numel, size):
        yield start, min(start + size, shard.numel)


def _largest(keys: Counts, n: int, m: int) -> Bools:
    """[out, in, rest] keys -> True for the n largest of each m inputs; of equal ones the last."""
    groups = keys.reshape(keys.shape[0], -1, m, keys.shape[2])
    order = np.argsort(groups, axis=2, kind="stable")
    kept = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(kept, order[:, :, m - n :], True, axis=2)
    return kept.reshape(keys.shape)

"""The exact threshold: the key of the k-th weight of a pool, without sorting or copying the pool.

Everything compares integer keys, so equal scores stay equal, denormals count, and the number removed is exact. A random
sample gives two keys between which the threshold lies almost surely. One pass (:func:`sift`) counts what is below them,
keeps what is above and collects the about 1 % in between; a radix selection of 11, 10 and 10 bits finishes on those. If
the sample misled, the radix selection runs on everything. Only counts travel between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lth_scale.bits import Bytes, size_in_bytes
from lth_scale.pruning.candidates import BLOCK, INFINITY, Bools, Candidates, Keys, has_nan
from lth_scale.pruning.ranks import Counts, Ranks
from lth_scale.pruning.shard import Shard

Places = npt.NDArray[np.integer]

SMALL = 1 << 15  # a pool up to this size is its own sample
SAMPLE = 1 << 13, 1 << 20  # weights looked at: at least, at most
BELOW, ABOVE = -1, INFINITY + 1
DEVIATIONS = 6  # half width of the bracket in standard deviations of a sampled rank: misses less than once in 10**8


@dataclass(frozen=True)
class Sifted:
    """One shard after the pass.

    Args:
        mask: n bits in uint8, the next mask but for the candidates, which are False in it.
        below: survivors that surely go.
        places: int [m], where in the shard the candidates are, ascending.
        keys: int32 [m], theirs.
        nan: whether a NaN was seen.
    """

    mask: Bytes
    below: int
    places: Places
    keys: Keys
    nan: bool


@dataclass(frozen=True)
class Threshold:
    """Where removal ends: all weights below ``key`` go, and some or all of those at it.

    Args:
        key: int32 key.
        less: this process's survivors below it, int64 [shards].
        equal: and at it.
        inside: whether all weights at it are among the sifted candidates.
    """

    key: int
    less: Counts
    equal: Counts
    inside: bool


def kth(pieces: Callable[[], Iterable[Keys]], k: int, ranks: Ranks) -> int:
    """The k-th smallest (from 1) of all keys of the group, by radix selection; ``pieces`` is called three times."""
    prefix, known = 0, 31
    for bits in (11, 10, 10):
        shift = known - bits
        counts = np.zeros(1 << bits, np.int64)
        for whole in pieces():
            for first in range(0, len(whole), BLOCK):
                keys = whole[first : first + BLOCK]
                keys = keys if known == 31 else keys[(keys >> known) == prefix]
                counts += np.bincount((keys >> shift) & ((1 << bits) - 1), minlength=1 << bits)
        running = np.cumsum(ranks.sum(counts))
        digit = int(np.searchsorted(running, k))
        k -= int(running[digit - 1]) if digit else 0
        prefix, known = prefix << bits | digit, shift
    return prefix


def bracket(pool: Candidates, survivors: int, k: int) -> tuple[int, int]:
    """Two keys, the same on all processes, between which (or on which) the k-th smallest almost surely lies."""
    total = sum(shard.numel for shard in pool.shards)
    if total <= SMALL:
        return BELOW, ABOVE
    stride = max(1, total // min(max(total // 512, SAMPLE[0]), SAMPLE[1]))
    sample = [_sample(pool, shard, stride) for shard in pool.shards]
    size = int(pool.ranks.sum(np.array([sum(map(len, sample))]))[0])
    share = k / survivors
    margin = DEVIATIONS * (size * share * (1 - share)) ** 0.5 + DEVIATIONS
    first, last = int(share * size - margin), int(share * size + margin) + 1
    low = kth(lambda: sample, first, pool.ranks) if first >= 1 else BELOW
    high = kth(lambda: sample, last, pool.ranks) if last <= size else ABOVE
    return low, high


def _sample(pool: Candidates, shard: Shard, stride: int) -> Keys:
    """Keys of the survivors among one weight of each ``stride``, at a random place in it: no layout can mislead it.

    The seed may be any constant: the sample decides the speed, never the result.
    """
    starts = np.arange(0, len(shard) - stride + 1, stride)
    places = torch.from_numpy(starts + np.random.default_rng(0).integers(0, stride, len(starts)))
    part = shard.pick(places.to(shard.weights.device))
    return pool.keys(part) if part.kept is None else pool.keys(part)[part.kept[:]]


def sift(pool: Candidates, shard: Shard, low: int, high: int) -> Sifted:
    """One pass over a shard: survivors up to ``low`` go, those from ``high`` stay, those in between are candidates."""
    out, below, nan = np.empty(size_in_bytes(len(shard)), np.uint8), 0, False
    number = np.int32 if len(shard) < 1 << 31 else np.int64
    places, between = [np.zeros(0, number)], [np.zeros(0, np.int32)]
    for where, keys, kept in pool.blocks(shard):
        under, inside, above = _split(keys, kept, low, high)
        out[packed(where)] = np.packbits(above, bitorder="little")
        below += int(np.count_nonzero(under))
        nan |= has_nan(keys)
        inside ^= under
        found = np.flatnonzero(inside)
        between.append(keys[found])
        places.append((found + where.start).astype(number))
    return Sifted(out, below, np.concatenate(places), np.concatenate(between), nan)


def packed(block: slice) -> slice:
    """Where in a shard's packed mask a block of it lies."""
    return slice(block.start // 8, size_in_bytes(block.stop))


def _split(keys: Keys, kept: Bools | None, low: int, high: int) -> tuple[Bools, Bools, Bools]:
    """(Survivors <= low, survivors < high, survivors >= high)."""
    under, inside = keys <= low, keys < high
    if kept is None:
        return under, inside, ~inside
    under &= kept
    inside &= kept
    return under, inside, kept ^ inside


def find(pool: Candidates, parts: Sequence[Sifted], edges: tuple[int, int], k: int) -> Threshold:
    """The k-th smallest key (k from 1) of the whole group's survivors; ``parts`` were sifted between ``edges``."""
    below = np.array([part.below for part in parts])
    total, candidates = pool.ranks.sum(np.array([below.sum(), sum(len(part.keys) for part in parts)]))
    if total < k <= total + candidates:
        key = kth(lambda: [part.keys for part in parts], k - int(total), pool.ranks)
        less = below + np.array([np.count_nonzero(part.keys < key) for part in parts])
        return Threshold(key, less, np.array([np.count_nonzero(part.keys == key) for part in parts]), inside=True)
    edge = _count(pool, edges[0] if k <= total else edges[1])
    less, equal = pool.ranks.sum(np.array([edge.less.sum(), edge.equal.sum()]))
    return edge if less < k <= less + equal else _count(pool, kth(pool.survivors, k, pool.ranks))


def _count(pool: Candidates, key: int) -> Threshold:
    """Counts of survivors below and at a key, in a pass of its own."""
    less, equal = np.zeros((2, len(pool.shards)), np.int64)
    for index, shard in enumerate(pool.shards):
        for _, keys, kept in pool.blocks(shard):
            for counts, hit in ((less, keys < key), (equal, keys == key)):
                counts[index] += np.count_nonzero(hit if kept is None else hit & kept)
    return Threshold(key, less, equal, inside=False)

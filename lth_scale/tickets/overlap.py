"""How alike two masks are, beside what chance gives, and whether the weights that both keep have equal signs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import numpy as np
import torch

from lth_scale.bits import Bits
from lth_scale.checkpoint import Source
from lth_scale.errors import UserError
from lth_scale.files import CHUNK
from lth_scale.masks import Mask


@dataclass(frozen=True)
class Overlap:
    """Two kept sets, of one tensor or summed over several.

    Args:
        numel: weights.
        kept: how many each mask keeps.
        common: how many both keep.
        expected: how many both would keep on average if each tensor's masks were drawn independently and uniformly,
            with the numbers kept that they have: ``a * b / n``, summed over tensors.
    """

    numel: int
    kept: tuple[int, int]
    common: int
    expected: float

    @property
    def jaccard(self) -> float:
        """Kept by both / kept by either; 1 where neither keeps anything."""
        return self._ratio(self.common)

    @property
    def chance(self) -> float:
        """The same of the expected numbers: a ratio of expectations, not the expectation of the ratio, from which it
        differs by about 1 / n.
        """
        return self._ratio(self.expected)

    def _ratio(self, common: float) -> float:
        either = sum(self.kept) - common
        return common / either if either else 1.0

    @staticmethod
    def total(parts: Iterable[Overlap]) -> Overlap:
        """Sums over tensors."""
        every = list(parts)
        kept = sum(part.kept[0] for part in every), sum(part.kept[1] for part in every)
        numel, common = sum(part.numel for part in every), sum(part.common for part in every)
        return Overlap(numel, kept, common, sum(part.expected for part in every))


def compare(one: Mask, other: Mask) -> dict[str, Overlap]:
    """Tensor -> overlap, in the first mask's order. Raises UserError unless names and shapes are the same."""
    mine, theirs = one.shapes, other.shapes
    if mine != theirs:
        wrong = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
        told = [f"{name} is {mine.get(name, 'missing')} and {theirs.get(name, 'missing')}" for name in wrong[:5]]
        raise UserError(f"the masks are of different networks: {'; '.join(told)}")
    kept = one.counts(), other.counts()
    found = {}
    for name, shape in mine.items():
        size, (a, b) = prod(shape), (kept[0][name][0], kept[1][name][0])
        common = _common(one.range(name, 0, size), other.range(name, 0, size))
        found[name] = Overlap(size, (a, b), common, a * b / size if size else 0.0)
    return found


def _common(one: Bits, other: Bits) -> int:
    both = zip(one.pieces(), other.pieces(), strict=True)
    return sum(int(np.bitwise_count(a & b).sum(dtype=np.int64)) for a, b in both)


def signs(name: str, one: tuple[Mask, Source], other: tuple[Mask, Source]) -> int:
    """At how many of the places that both masks keep two states' weights have the same sign.

    0 is a sign of its own; NaN has none.
    """
    (mine, first), (theirs, second), key = one, other, f"weights/{name}"
    size, agree = prod(mine.shapes[name]), 0
    step = CHUNK // 4
    for start in range(0, size, step):
        stop = min(start + step, size)
        both = torch.from_numpy(mine.range(name, start, stop)[:] & theirs.range(name, start, stop)[:])
        a, b = first.read(key, start, stop), second.read(key, start, stop)
        agree += int((both & (a.sign() == b.sign()) & ~(a.isnan() | b.isnan())).sum())
    return agree

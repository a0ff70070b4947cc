"""Bits: booleans packed 8 to a byte, in memory or in a file, read by ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PIECE = 1 << 20  # bytes walked over at a time

Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


def size_in_bytes(bits: int) -> int:
    """How many bytes hold so many bits."""
    return -(-bits // 8)


@dataclass(frozen=True, eq=False)
class Bits:
    """A run of booleans, 8 to a byte, the first in the lowest bit. Never changes once made.

    Args:
        data: uint8 array that holds the run; it may be the memory map of a file.
        offset: the run's first bit in it.
        size: booleans of the run.
    """

    data: Bytes
    offset: int
    size: int

    def __post_init__(self) -> None:
        assert 0 <= self.offset <= self.offset + self.size <= 8 * len(self.data), "a run beyond its bytes"

    @classmethod
    def pack(cls, kept: Bools) -> Bits:
        """A copy of a bool array [n]."""
        return cls(np.packbits(kept, bitorder="little"), 0, len(kept))

    @classmethod
    def ones(cls, size: int) -> Bits:
        """All True."""
        return cls(cls(np.full(size_in_bytes(size), 255, np.uint8), 0, size).packed(), 0, size)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, where: slice) -> Bools:
        """Consecutive booleans, in memory of their own."""
        run = self.range(*where.indices(self.size)[:2])
        first, phase = divmod(run.offset, 8)
        flat = np.unpackbits(self.data[first : first + size_in_bytes(phase + run.size)], bitorder="little")
        return flat[phase : phase + run.size].view(np.bool_)

    def range(self, start: int, stop: int) -> Bits:
        """A part of the run, sharing its memory."""
        stop = max(start, stop)
        assert 0 <= start <= stop <= self.size, "a range beyond its run"
        return Bits(self.data, self.offset + start, stop - start)

    def at(self, places: npt.NDArray[np.integer]) -> Bools:
        """The booleans at places of the run, an int array of any shape."""
        bits = places + np.int64(self.offset)
        return (self.data[bits >> 3] >> (bits & 7).astype(np.uint8) & 1).view(np.bool_)

    def count(self) -> int:
        """How many are True."""
        return sum(int(np.bitwise_count(piece).sum(dtype=np.int64)) for piece in self.pieces())

    def packed(self) -> Bytes:
        """uint8 [ceil(n / 8)] with the run's first boolean in its lowest bit and 0 after its last.

        Not to be written to: it shares the run's memory where that begins at a byte.
        """
        first, phase = divmod(self.offset, 8)
        data = self.data[first : first + size_in_bytes(phase + self.size)]
        if phase:
            low = np.right_shift(data, np.uint8(phase))
            low[:-1] |= np.left_shift(data[1:], np.uint8(8 - phase))
            data = low[: size_in_bytes(self.size)]
        if self.size % 8 and data[-1] >> self.size % 8:
            data = data.copy()
            data[-1] &= (1 << self.size % 8) - 1
        return data

    def pieces(self) -> Iterator[Bytes]:
        """:meth:`packed` in consecutive pieces, so that a long run needs no copy of its own."""
        for start in range(0, self.size, 8 * PIECE):
            yield self.range(start, min(start + 8 * PIECE, self.size)).packed()

    def place(self, out: Bytes, at: int) -> None:
        """Set those bits of ``out``, from bit ``at`` on, that are True in the run; the others stay as they are."""
        byte, phase = divmod(at, 8)
        for piece in self.pieces():
            out[byte : byte + len(piece)] |= piece << phase
            if phase and len(spill := out[byte + 1 : byte + 1 + len(piece)]):
                spill |= piece[: len(spill)] >> (8 - phase)
            byte += PIECE

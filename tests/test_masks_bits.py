"""Bits: whatever the offset, they are the booleans that were packed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lth_scale import bits as module
from lth_scale.bits import Bits

Bools = npt.NDArray[np.bool_]


@pytest.fixture(scope="module", autouse=True)
def _small_pieces() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", 5)
        yield


@st.composite
def runs(draw: st.DrawFn) -> tuple[Bits, Bools]:
    """A run at any offset among other bits, in memory that cannot be written to, and its booleans."""
    size, offset, after = draw(st.integers(0, 200)), draw(st.integers(0, 40)), draw(st.integers(0, 20))
    around = np.random.default_rng(draw(st.integers(0, 99))).random(offset + size + after) < 0.5
    data = np.packbits(around, bitorder="little")
    data.flags.writeable = False
    return Bits(data, offset, size), around[offset : offset + size]


@given(run=runs(), start=st.integers(0, 210), stop=st.integers(0, 210))
def test_any_part_of_any_run(run: tuple[Bits, Bools], start: int, stop: int) -> None:
    bits, expected = run
    assert len(bits) == len(expected) and bits.count() == int(expected.sum())
    assert bits[start:stop].tolist() == expected[start:stop].tolist()
    assert bits[:].tolist() == expected.tolist()
    first, last = sorted((min(start, len(bits)), min(stop, len(bits))))
    part = bits.range(first, last)
    assert part.count() == int(expected[first:last].sum()) and part[:].tolist() == expected[first:last].tolist()


@given(run=runs(), data=st.data())
def test_at(run: tuple[Bits, Bools], data: st.DataObject) -> None:
    bits, expected = run
    places = data.draw(st.lists(st.integers(0, len(bits) - 1))) if len(bits) else []
    for kind in (np.int32, np.int64):
        assert bits.at(np.array(places, kind)).tolist() == expected[places].tolist()


@given(run=runs())
def test_packed_is_canonical(run: tuple[Bits, Bools]) -> None:
    bits, expected = run
    canonical = np.packbits(expected, bitorder="little").tobytes()
    assert bits.packed().tobytes() == b"".join(piece.tobytes() for piece in bits.pieces()) == canonical
    assert Bits.pack(expected)[:].tolist() == expected.tolist()


@given(run=runs(), at=st.integers(0, 50), spare=st.integers(0, 30))
def test_place_touches_nothing_else(run: tuple[Bits, Bools], at: int, spare: int) -> None:
    bits, expected = run
    around = np.random.default_rng(0).random(at + len(bits) + spare) < 0.5
    out = np.packbits(around, bitorder="little")
    bits.place(out, at)
    around[at : at + len(bits)] |= expected
    assert out.tobytes() == np.packbits(around, bitorder="little").tobytes()


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100])
def test_ones(size: int) -> None:
    ones = Bits.ones(size)
    assert len(ones) == ones.count() == size and bool(ones[:].all())
    assert ones.data.tobytes() == np.packbits(np.ones(size, np.bool_), bitorder="little").tobytes()


def test_a_run_stays_within_its_bytes() -> None:
    with pytest.raises(AssertionError, match="beyond its bytes"):
        Bits(np.zeros(2, np.uint8), 9, 8)
    with pytest.raises(AssertionError, match="beyond its run"):
        Bits(np.zeros(2, np.uint8), 0, 8).range(0, 9)

"""Bytes that are no image are refused; bytes that every reader accepts are not."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_data_streamed_decode import CROP, SCALED, WHOLE, by_pillow, encoded, pixels, seen

from lth_scale.data.streamed import decode
from lth_scale.data.streamed.decode import Damaged, eval_image

IMAGE = pixels(40, 56)
BASELINE, PROGRESSIVE, PNG = encoded(IMAGE), encoded(IMAGE, progressive=True), encoded(IMAGE, "png")
RESTARTS = encoded(IMAGE, restart_marker_rows=1)


def readable(data: bytes) -> bool:
    """Whether the image can be read, which all functions must agree on."""
    found = set()
    for call in (lambda: seen(data, WHOLE), lambda: seen(data, SCALED), lambda: eval_image(data, CROP)):
        try:
            assert call().shape == (3, CROP, CROP)
            found.add(True)
        except Damaged as error:
            assert str(error)
            found.add(False)
    assert len(found) == 1
    return found.pop()


@pytest.mark.parametrize("data", [BASELINE, PROGRESSIVE, RESTARTS, PNG], ids=["jpeg", "progressive", "restarts", "png"])
def test_what_is_cut_short_is_damaged_or_whole(data: bytes) -> None:
    whole, cuts = decode.decoded(data), sorted({*range(0, len(data), 23), *range(len(data) - 12, len(data))})
    lost = 0
    for cut in cuts:
        try:
            assert np.array_equal(decode.decoded(data[:cut]), whole)
        except Damaged:
            lost += 1
    assert lost >= len(cuts) - 12
    assert readable(data) and not readable(data[: len(data) // 2]) and not readable(data[:-30])


def test_control_without_strictness_a_cut_image_would_pass() -> None:
    assert simplejpeg.decode_jpeg(BASELINE[: len(BASELINE) // 2 + 200], strict=False).shape == (40, 56, 3)
    with pytest.raises(Damaged):
        decode.decoded(BASELINE[: len(BASELINE) // 2 + 200])


@given(st.binary(max_size=300))
def test_random_bytes_are_damaged(data: bytes) -> None:
    assert not readable(data)


@given(st.sampled_from([BASELINE[:20], PROGRESSIVE[:200], PNG[:60]]), st.binary(max_size=300))
def test_a_head_with_random_bytes_is_damaged(head: bytes, data: bytes) -> None:
    assert not readable(head + data)


@given(st.sampled_from([BASELINE, PROGRESSIVE, PNG]), st.integers(0, 1 << 30), st.binary(min_size=1, max_size=8))
def test_overwritten_bytes_are_damaged_or_give_an_image(data: bytes, place: int, new: bytes) -> None:
    """Never another exception, nor a crash; that the bytes are the right ones is the checksum's business."""
    place %= len(data)
    readable(data[:place] + new + data[place + len(new) :])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_heads_alone_are_damaged(data: bytes) -> None:
    assert not readable(data)


def revision(data: bytes) -> bytes:
    """A JFIF revision that libjpeg does not know and warns of."""
    assert data[6:11] == b"JFIF\0"
    return data[:11] + b"\x05" + data[12:]


def padded(data: bytes) -> bytes:
    """Bytes between two scans, which libjpeg skips with a warning."""
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    table = data.rindex(b"\xff\xc4", 0, second)
    return data[:table] + bytes(range(32, 64)) + data[table:]


@pytest.mark.parametrize("data", [revision(BASELINE), padded(PROGRESSIVE), BASELINE + b"zz"])
def test_what_every_reader_accepts_is_no_damage(data: bytes) -> None:
    assert readable(data)
    assert np.array_equal(decode.decoded(data), by_pillow(data).permute(1, 2, 0).numpy())


def test_a_harmless_warning_does_not_hide_a_cut() -> None:
    data = padded(PROGRESSIVE)
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(data)
    assert readable(data) and not readable(data[:-40])
    assert not readable(revision(BASELINE)[:-40])


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image beyond the bound of the direct path meets Pillow's."""
    monkeypatch.setattr(decode, "LARGEST", 1000)
    assert readable(BASELINE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert not readable(BASELINE)

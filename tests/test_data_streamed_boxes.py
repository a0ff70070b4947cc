"""Decoding no more of a JPEG than is seen changes no bit, and hides no damage."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_data_streamed_decode import CROP, SCALED, WHOLE, encoded, pixels, seen
from test_data_streamed_decode_damage import padded, revision

from lth_scale.data.streamed import boxes, decode
from lth_scale.data.streamed.decode import Damaged, Look, sound, train_image
from lth_scale.data.streamed.looks import Box

KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    **{
        subsampling: lambda image, subsampling=subsampling: simplejpeg.encode_jpeg(  # type: ignore[misc]
            np.ascontiguousarray(image), 90, colorsubsampling=subsampling
        )
        for subsampling in ("444", "440", "422", "420", "411")
    },
    "gray": lambda image: encoded(image.convert("L")),
    "rgb": lambda image: encoded(image, keep_rgb=True),
    "progressive": lambda image: encoded(image, progressive=True),
    "restarts": lambda image: encoded(image, restart_marker_rows=1),
    "metadata": lambda image: encoded(image, icc_profile=bytes(70000), comment=b"\xff\xd8\xff", dpi=(72, 72)),
}


def whole(data: bytes, fast: bool) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return simplejpeg.decode_jpeg(data, fastdct=fast, fastupsample=fast)


def cut(full: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], box: Box) -> object:
    return full[box.top : box.top + box.height, box.left : box.left + box.width]


@st.composite
def images_and_boxes(draw: st.DrawFn) -> tuple[Image.Image, Box]:
    height, width = draw(st.integers(1, 90)), draw(st.integers(boxes.NARROWEST, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - boxes.NARROWEST))
    box = Box(top, left, draw(st.integers(1, height - top)), draw(st.integers(boxes.NARROWEST, width - left)))
    return pixels(height, width, draw(st.integers(0, 3))), box


@pytest.mark.parametrize("kind", KINDS)
@given(where=images_and_boxes(), fast=st.booleans())
def test_a_box_has_the_bits_of_the_whole_image(kind: str, where: tuple[Image.Image, Box], fast: bool) -> None:
    image, box = where
    data = KINDS[kind](image)
    stream = boxes.opened(data)
    assert sound(data) and stream and stream.size == (image.height, image.width)
    part = stream.decode(box, fast)
    assert part is not None and np.array_equal(part, cut(whole(data, fast), box))


def test_control_single_columns_at_an_edge_would_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(pixels(64, 50))
    stream = boxes.opened(data)
    assert stream and stream.decode(Box(0, 0, 64, 1), fast=False) is None
    monkeypatch.setattr(boxes, "NARROWEST", 1)
    part = stream.decode(Box(0, 0, 64, 1), fast=False)
    assert part is not None and not np.array_equal(part, cut(whole(data, False), Box(0, 0, 64, 1)))


@pytest.mark.parametrize("look", [WHOLE, SCALED, Look(CROP, "resized_crop", False, 9)], ids=["whole", "scaled", "rand"])
def test_an_image_known_to_be_sound_is_seen_alike_and_decoded_in_part(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, parts = encoded(pixels()), list[int]()
    decode_box = boxes.Stream.decode

    def counted(self: boxes.Stream, box: Box, fast: bool) -> object:
        parts.append(box.height)
        return decode_box(self, box, fast)

    monkeypatch.setattr(boxes.Stream, "decode", counted)
    expected = [train_image(data, look, 0, 0, 0, sample) for sample in range(20)]
    assert not parts
    found = [train_image(data, look, 0, 0, 0, sample, known=True) for sample in range(20)]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert len(parts) == 20 if not look.scaled else 0 < len(parts) < 20


@pytest.mark.parametrize("why", ["no package", "not parsed", "not decoded"])
def test_where_no_box_can_be_decoded_the_whole_image_is(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(pixels())
    expected = seen(data)

    class Unknown:
        """A parser that knows no JPEG."""

        def CodeStream(self, data: bytes) -> object:
            raise RuntimeError("Failed to get image info")

    if why == "not decoded":
        monkeypatch.setattr(boxes._Decoder, "decode", lambda self, stream, size: None)
    else:
        monkeypatch.setattr(boxes, "_codec", lambda: None if why == "no package" else Unknown())
        assert boxes.opened(data) is None
    assert torch.equal(train_image(data, WHOLE, 0, 0, 0, 0, known=True), expected)


def test_what_may_be_decoded_in_part_is_a_jpeg_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    data, progressive = encoded(pixels()), encoded(pixels(), progressive=True)
    assert sound(data) and sound(progressive)
    for other in (data[:-30], data[: len(data) // 2], revision(data), padded(progressive), b"", b"no image"):
        assert not sound(other)
    assert not sound(encoded(pixels(), "png")) and not sound(encoded(pixels().convert("CMYK")))
    monkeypatch.setattr(decode, "LARGEST", 1000)
    assert not sound(data)


def test_control_a_box_above_the_damage_would_be_decoded() -> None:
    """Why soundness is found out beforehand: this decoder neither sees what lies below, nor tells of warnings."""
    data = encoded(pixels())
    stream = boxes.opened(data[: len(data) // 2])
    assert stream and stream.decode(Box(0, 0, 20, 20), fast=False) is not None
    with pytest.raises(Damaged):
        seen(data[: len(data) // 2])


def test_memory_is_used_again_but_never_taken_away() -> None:
    """The next box overwrites it, a larger one gets other memory, and each thread has its own."""
    stream = boxes.opened(encoded(pixels()))
    assert stream

    def decoded(height: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        part = stream.decode(Box(0, 0, height, 100), fast=False)
        assert part is not None
        return part

    decoded(150)
    first = decoded(20)
    with ThreadPoolExecutor(1) as pool:
        assert not np.shares_memory(first, pool.submit(decoded, 20).result())
    again = decoded(30)
    assert np.shares_memory(first, again)
    larger = stream.decode(Box(0, 0, 150, 200), fast=False)
    assert larger is not None and not np.shares_memory(again, larger)
    assert np.array_equal(again, whole(encoded(pixels()), False)[:30, :100])


@pytest.mark.slow
def test_the_decoder_says_nothing_of_missing_gpus() -> None:
    code = "from lth_scale.data.streamed import boxes; print(boxes.opened(open('/dev/stdin', 'rb').read()).size)"
    done = subprocess.run([sys.executable, "-c", code], input=encoded(pixels()), capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"(150, 200)\n", b"")

"""A JPEG decoded no further than a box of it needs, to the bits of the whole image's: nvImageCodec's libjpeg-turbo."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt

from lth_scale.data.streamed.looks import Box

NARROWEST = 8
"""Pixels. Of a single column at an image's edge, libjpeg-turbo does not see the one that its colour is blended with."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing reaches the process's standard error, whoever writes it."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@cache
def _codec() -> Any:
    """The package, or None where there is none for this system; images are then decoded whole."""
    try:
        with _quiet():  # it complains of every codec for GPUs that is not installed
            from nvidia import nvimgcodec
    except ImportError:
        return None
    return nvimgcodec


class _Decoder(local):
    """One of each thread; what it decodes goes into the same memory, which is then still in the processor's cache."""

    def __init__(self, fast: bool) -> None:
        codec = _codec()
        self._decoder = codec.Decoder(
            device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY,
            backends=[codec.Backend(codec.BackendKind.CPU_ONLY)],
            max_num_cpu_threads=1,
            options=f":fancy_upsampling={int(not fast)} :fast_idct={int(fast)}",
        )
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        self._image: Any = None

    def decode(self, stream: Any, size: int) -> Any:
        # Memory that is too small is left to whoever still looks at it, not enlarged.
        kept = self._image if self._image is not None and self._image.capacity >= size else None
        image = self._decoder.decode(stream, params=self._params, image=kept)
        self._image = image if image is not None else self._image
        return image


_decoder = cache(_Decoder)


class Stream:
    """A JPEG of which boxes can be decoded.

    Args:
        size: its height and width.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.size: tuple[int, int] = (stream.height, stream.width)

    def decode(self, box: Box, fast: bool) -> npt.NDArray[np.uint8] | None:
        """The box's pixels, uint8 [height, width, 3], RGB; None if it is too narrow, or cannot be decoded alone.

        They are overwritten by the next box that the same thread decodes.

        Args:
            box: within the image.
            fast: by the fast transform and without interpolating colour.
        """
        if box.width < NARROWEST:
            return None
        region = _codec().Region(box.top, box.left, box.top + box.height, box.left + box.width)
        part = _decoder(fast).decode(self._stream.get_sub_code_stream(region=region), box.height * box.width * 3)
        return None if part is None else np.asarray(part)


def opened(data: bytes) -> Stream | None:
    """A JPEG that decodes whole without a warning, opened; None if that is not possible here.

    Of any other, this decoder would print the warning and go on.
    """
    codec = _codec()
    try:
        return None if codec is None else Stream(codec.CodeStream(data))
    except RuntimeError:  # of some JPEGs its parser knows less than libjpeg
        return None

"""From the bytes of an encoded image to what the model sees of it, as a pure function."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from lth_scale.data.streamed import boxes
from lth_scale.data.streamed.looks import DRAWS, Box, random_box, reduction, scaled_box
from lth_scale.streams import derive, torch_seeded, uniforms

Pixels = npt.NDArray[np.uint8]  # [height, width, 3], contiguous

CHANNELS = 3
MARGIN = 0.875  # evaluation looks at this part of the resized image's short side
DIRECT = {"YCbCr", "RGB", "Gray"}  # JPEG colour spaces that simplejpeg turns into the same RGB as PIL
LARGEST = 1 << 26  # pixels; above, Pillow decodes, which refuses decompression bombs
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # Pillow's others may start programs
# What libjpeg only warns of and every reader accepts; its other warnings mean lost pixels.
HARMLESS = re.compile("extraneous bytes before marker|unknown JFIF revision|Invalid SOS parameters")


class Damaged(ValueError):
    """Bytes that are no readable image."""


@dataclass(frozen=True)
class Look:
    """How a training image is seen.

    Args:
        crop: side in pixels of the result.
        augment: resized_crop takes a random box and mirrors half of the images; none looks as evaluation does.
        scaled: whether JPEGs are decoded more cheaply: at 1/2, 1/4 or 1/8 of their size where the box stays as large as
            the result, and always by the fast transform and without interpolating colour.
        randaugment: magnitude of RandAugment (two operations an image); 0 means none.
    """

    crop: int
    augment: Literal["none", "resized_crop"]
    scaled: bool
    randaugment: int


def train_image(
    data: bytes,
    look: Look,
    seed: int,
    noise: int,
    epoch: int,
    sample: int,
    known: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """One training image; a pure function of its arguments that leaves every global random state alone.

    Args:
        data: an image file's bytes.
        look: how it is seen.
        seed: of the augmentation stream.
        noise: 0, or the round whose own augmentation it is.
        epoch: which pass over the data.
        sample: the image's number.
        known: whether it is known to be :func:`sound`; then no more of it is decoded than is seen, to the same bits.
        out: where to put it, of the result's shape and layout; saves a copy.

    Returns:
        uint8 [3, crop, crop], channels last in memory; ``out`` if that was given.

    Raises:
        Damaged: the bytes are no readable image.
    """
    if out is None:
        out = torch.empty((look.crop, look.crop, CHANNELS), dtype=torch.uint8).permute(2, 0, 1)
    if look.augment == "none":
        return out.copy_(eval_image(data, look.crop))
    uniform = iter(uniforms(DRAWS, seed, "augment", noise, epoch, sample)).__next__
    source = _source(data, known)
    box = random_box(*source.size, uniform)
    _resize(*_part(source, box, look), out)
    if uniform() < 0.5:
        out.copy_(out.flip(2))
    if look.randaugment:
        out.copy_(_randaugment(out, look.randaugment, derive(seed, "randaugment", noise, epoch, sample)))
    return out


def eval_image(data: bytes, crop: int) -> Tensor:
    """The middle of an image as evaluation sees it: decoded whole, short side resized to crop / 0.875, cropped.

    Args:
        data: an image file's bytes.
        crop: side in pixels of the result.

    Returns:
        uint8 [3, crop, crop], channels last in memory.

    Raises:
        Damaged: the bytes are no readable image.
    """
    from torchvision.transforms import v2

    image = torch.from_numpy(decoded(data)).permute(2, 0, 1)
    short = v2.functional.resize_image(image, [round(crop / MARGIN)], antialias=True)
    return v2.functional.center_crop(short, [crop, crop])


def decoded(data: bytes) -> Pixels:
    """An image at its full size, uint8 [height, width, 3], RGB as Pillow's convert("RGB"); EXIF rotation is ignored.

    Raises:
        Damaged: the bytes are no readable image.
    """
    source = _source(data, False)
    return _jpeg(source) if source.pixels is None else source.pixels


def sound(data: bytes) -> bool:
    """Whether it is a JPEG that decodes to its end without a warning, so that a part of it can be decoded alone."""
    if not _direct(data):
        return False
    try:
        simplejpeg.decode_jpeg(data)
    except ValueError:
        return False
    return True


def _direct(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that simplejpeg turns into Pillow's pixels; None for all others."""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (height, width) if space in DIRECT and height * width <= LARGEST else None


class _Source(NamedTuple):
    """An image's bytes, its height and width, and what else is known of it.

    Args:
        data: the bytes.
        size: height and width.
        pixels: already, if it is no JPEG to be decoded directly.
        stream: of what boxes are decoded alone, if it is known to be sound.
    """

    data: bytes
    size: tuple[int, int]
    pixels: Pixels | None = None
    stream: boxes.Stream | None = None


def _source(data: bytes, known: bool) -> _Source:
    stream = boxes.opened(data) if known else None
    if stream:
        return _Source(data, stream.size, stream=stream)
    if size := _direct(data):
        return _Source(data, size)
    pixels = _by_pillow(data)
    return _Source(data, (pixels.shape[0], pixels.shape[1]), pixels)


def _part(source: _Source, box: Box, look: Look) -> tuple[Pixels, Box]:
    """The image's pixels as far as the look needs them, and where the box lies in them."""
    if source.pixels is not None:
        return source.pixels, box
    factor = reduction(box, look.crop) if look.scaled else 1
    if source.stream and factor == 1:
        part = source.stream.decode(box, fast=look.scaled)
        if part is not None:
            return part, Box(0, 0, box.height, box.width)
    return _jpeg(source, factor, fast=look.scaled), scaled_box(box, factor)


def _resize(pixels: Pixels, box: Box, out: Tensor) -> None:
    """Antialiased and bilinear, as torchvision's resized_crop; neither the box nor the result is copied.

    The function behind interpolate(antialias=True), which alone can write into a batch. It works in place and channels
    last only where the strides leave no doubt: over an image of its own, the stride from one image to the next must not
    look like that of a single row.
    """
    columns = pixels.shape[1]
    strides = (pixels.size, 1, columns * CHANNELS, CHANNELS)
    first = (box.top * columns + box.left) * CHANNELS
    part = torch.from_numpy(pixels).as_strided((1, CHANNELS, box.height, box.width), strides, first)
    torch.ops.aten._upsample_bilinear2d_aa.out(part, out.shape[1:], False, None, None, out=out[None])


def _randaugment(image: Tensor, magnitude: int, seed: int) -> Tensor:
    """torchvision draws from torch's global generator only, which is put back afterwards."""
    from torchvision.transforms import v2

    with torch_seeded(seed):
        augmented: Tensor = v2.RandAugment(num_ops=2, magnitude=magnitude)(image)
    return augmented


def _jpeg(source: _Source, factor: int = 1, fast: bool = False) -> Pixels:
    """A JPEG at 1/factor of its size, rounded up."""
    height, width = (-(-side // factor) for side in source.size)
    sides = {"min_height": height, "min_width": width}
    decode = partial(simplejpeg.decode_jpeg, source.data, **sides, fastdct=fast, fastupsample=fast)
    try:
        return decode()
    except ValueError as error:
        if not HARMLESS.search(str(error)):
            raise Damaged(str(error)) from error
    _by_pillow(source.data)  # that warning may have hidden another: Pillow refuses what breaks off
    return decode(strict=False)


def _by_pillow(data: bytes) -> Pixels:
    """Any image, at its full size."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # its readers raise whatever they stumble over, not only OSError
        raise Damaged(str(error)) from error

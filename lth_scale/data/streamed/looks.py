"""Which part of an image a training step looks at: the draws of RandomResizedCrop and of the mirror, no pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

AREA = (0.08, 1.0)
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
TRIES = 10
DRAWS = 2 * TRIES + 3
"""Numbers that a box and a mirror need at most: two a try, top, left, and whether to mirror."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(height: int, width: int, uniform: Callable[[], float]) -> Box:
    """A box distributed as torchvision's RandomResizedCrop draws it: scale (0.08, 1), log-uniform ratio (3/4, 4/3).

    Args:
        height: of the image.
        width: of the image.
        uniform: draws from [0, 1): area and ratio for each try, then top and left.
    """
    for _ in range(TRIES):
        area = height * width * _between(AREA, uniform())
        ratio = math.exp(_between(LOG_RATIO, uniform()))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(uniform() * (height - h + 1)), int(uniform() * (width - w + 1)), h, w)
    return central_box(height, width)


def central_box(height: int, width: int) -> Box:
    """The largest central box whose ratio lies in (3/4, 4/3): for images so long that no draw fits."""
    w, h = min(width, round(height * 4 / 3)), min(height, round(width / (3 / 4)))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def reduction(box: Box, crop: int) -> int:
    """The largest of 8, 4, 2 and 1 by which the box can shrink and still have ``crop`` pixels on both sides."""
    return next(factor for factor in (8, 4, 2, 1) if factor == 1 or min(box.height, box.width) >= factor * crop)


def scaled_box(box: Box, factor: int) -> Box:
    """The box in an image decoded at 1/factor of its size, each edge rounded to the nearest pixel."""
    top, left, bottom, right = (
        (edge + factor // 2) // factor for edge in (box.top, box.left, box.top + box.height, box.left + box.width)
    )
    return Box(top, left, bottom - top, right - left)


def _between(bounds: tuple[float, float], uniform: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform

"""Pad, crop and mirror, a whole batch at a time; the draws are a pure function of (seed, noise, epoch, sample)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from lth_scale.streams import numpy_generator

PADDING = 4


@lru_cache(maxsize=4)
def draws(seed: int, noise: int, epoch: int, samples: int) -> Tensor:
    """The draws of an epoch, int64 [samples, 3]: top and left of the crop in 0..8, and 1 to mirror."""
    generator = numpy_generator(seed, "augment", noise, epoch)
    corners = generator.integers(0, 2 * PADDING + 1, (samples, 2), np.int64)
    mirrored = generator.integers(0, 2, (samples, 1), np.int64)
    return torch.from_numpy(np.concatenate([corners, mirrored], axis=1))


def crop_flip(images: Tensor, ids: Tensor, table: tuple[int, int, int, int]) -> Tensor:
    """Pad uint8 [B, C, H, W] by 4 pixels of 0, crop back to H x W, and mirror left to right in half of the cases.

    Args:
        images: the batch.
        ids: its sample ids, int64 [B]: rows of the table of draws.
        table: the arguments of :func:`draws`.
    """
    top, left, mirrored = draws(*table).index_select(0, ids).unbind(1)
    height, width = images.shape[2:]
    windows = pad(images, [PADDING] * 4).unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(len(ids)), :, top, left]
    return torch.where(mirrored.bool().view(-1, 1, 1, 1), crops.flip(3), crops)

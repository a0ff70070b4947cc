"""A data set as the rest of the program sees it: three splits of uint8 images in memory, and their normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

FLOAT_LIMIT = 512 << 20
"""Bytes of float32 up to which a whole split is kept normalised in memory."""


@dataclass(frozen=True)
class Description:
    """What can be said without the data at hand: shape (C, H, W) and the number of classes and of samples per split."""

    name: str
    classes: int
    shape: tuple[int, int, int]
    train: int
    validation: int
    test: int


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [..., C, H, W] -> float32 of the same shape, on the same device: (x / 255 - mean) / std per channel."""
    mean_, std_ = (torch.tensor(v, dtype=torch.float32, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return images.to(torch.float32).div_(255).sub_(mean_).div_(std_)


def evenly(length: int, samples: int | None) -> Tensor:
    """At most ``samples`` (None: all) of the rows 0..length-1, evenly spread from the first to the last: int64."""
    if samples is None or samples >= length:
        return torch.arange(length)
    return torch.linspace(0, length - 1, samples, dtype=torch.float64).round().long()


@dataclass(frozen=True, eq=False)
class Split:
    """One split: images uint8 [N, C, H, W] and labels int64 [N], on the CPU, in the order of the shards."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A whole data set in memory.

    ``mean`` and ``std`` are per channel, of the train split, in units of 1/255; ``checksum`` is the hex SHA-256 of
    all images and labels, whatever their encoding on disk.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str

    def length(self, split: SplitName) -> int:
        """How many samples a split has."""
        return len(getattr(self, split))

    def normalise(self, images: Tensor) -> Tensor:
        """:func:`normalise` by the train split's moments."""
        return normalise(images, self.mean, self.std)

    @cached_property
    def normalised_train(self) -> Tensor | None:
        """The train images, normalised, float32 [N, C, H, W]; None when they would take more than ``FLOAT_LIMIT``."""
        return self.normalise(self.train.images) if self.train.images.numel() * 4 <= FLOAT_LIMIT else None

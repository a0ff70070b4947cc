"""What a data set's own file says about it: its shape, where its files come from, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lth_scale.data.dataset import Description
from lth_scale.errors import UserError
from lth_scale.registry import Registry
from lth_scale.streams import numpy_generator

HELD_OUT_SEED = 2019
"""Cuts validation from train (and test, where a data set has none): a constant, so the same in all replicates."""


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, C, H, W] with labels int64 [N]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> Images:
        """Those rows, copied."""
        return Images(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Content:
    """A data set read from its own files; ``rule`` says in words how the splits were made."""

    train: Images
    validation: Images
    test: Images
    class_names: tuple[str, ...]
    rule: str


@dataclass(frozen=True)
class Source:
    """What the user gave: the data set's own files, and the side in pixels that images of a folder get."""

    path: Path
    size: int = 0
    progress: bool = False


@dataclass(frozen=True)
class Preparation:
    """What the user asked of a data set that stays encoded.

    Args:
        name: of the data set.
        sources: its own files, each as given.
        out: the folder to fill.
        shard_size: samples of one shard.
        max_side: pixels that the shorter side of an image is bounded to; 0 keeps every image as it is.
        jobs: processes.
        progress: whether to show bars.
    """

    name: str
    sources: tuple[str, ...]
    out: Path
    shard_size: int
    max_side: int
    jobs: int
    progress: bool


@dataclass(frozen=True)
class Definition:
    """One data set: ``read`` makes one that is held in memory, ``write`` one that is streamed.

    Args:
        description: its sizes; None when only its index knows (image folders).
        needs: what the source must hold, in words.
        read: own files -> content; raises UserError naming a missing or damaged file.
        write: own files -> a folder of shards with their index; raises UserError likewise.
        in_place: its own files are the shards, so that they can be neither cut nor changed.
        places: where packages of the system put its files.
        fetch: downloads its files into a folder.
        makes_itself: needs no files at all.
    """

    description: Description | None
    needs: str
    read: Callable[[Source], Content] | None = None
    write: Callable[[Preparation], None] | None = None
    in_place: bool = False
    places: tuple[Path, ...] = ()
    fetch: Callable[[Path], None] | None = None
    makes_itself: bool = False

    @property
    def streamed(self) -> bool:
        """Whether its images stay encoded in the shards, instead of being held in memory."""
        return self.write is not None


datasets: Registry[Definition] = Registry("data.name")


def shuffled(count: int, name: str) -> npt.NDArray[np.int64]:
    """A fixed permutation of ``count`` samples of the data set ``name``.

    Sorts raw Philox words, which are the same in every version of NumPy; ``Generator.permutation`` may change.
    """
    words = numpy_generator(HELD_OUT_SEED, "held out", name).bit_generator.random_raw(count)
    return np.argsort(words, kind="stable").astype(np.int64)


def hold_out(samples: Images, count: int, name: str) -> tuple[Images, Images]:
    """(the rest, ``count`` samples), both in their old order; UserError when that would leave no rest."""
    if len(samples) <= count:
        raise UserError(f"{name}: the source has {len(samples)} training images, of which {count} are to be held out")
    rows = shuffled(len(samples), name)
    return samples.take(np.sort(rows[count:])), samples.take(np.sort(rows[:count]))

"""What training and evaluation see of any data set, in memory or streamed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from lth_scale import config
from lth_scale.data.batches import Batches
from lth_scale.data.dataset import Dataset, Split, SplitName, evenly
from lth_scale.data.definition import datasets
from lth_scale.data.streamed.loading import Streamed, StreamedBatches, evaluation
from lth_scale.data.streamed.order import rank_rows
from lth_scale.errors import UserError

AnyDataset = Dataset | Streamed
Pairs = Iterable[tuple[Tensor, Tensor]]

BATCH = 500  # 5 times faster than 5000 for small convolutional networks on CPUs, whose caches then hold the activations
CACHED = 256 << 20
"""Bytes of normalised float32 images up to which an evaluated split is kept in memory."""


class Training(Sized, Protocol):
    """The micro-batches of one rank, in order: (x, y), x normalised float32 or, streamed, uint8."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


def training_batches(
    dataset: AnyDataset,
    data: config.Data,
    train: config.Train,
    *,
    start: int,
    stop: int,
    order: int,
    augment: int,
    noise: int,
    rank: int = 0,
    world: int = 1,
) -> Training:
    """The micro-batches of one rank for the steps ``start``..``stop - 1``; see :class:`Batches` for the arguments."""
    where = {"batch_size": train.batch_size, "micro_batch": train.micro_batch, "start": start, "stop": stop}
    draws = {"order": order, "augment_seed": augment, "noise": noise, "rank": rank, "world": world}
    if isinstance(dataset, Streamed):
        return StreamedBatches(dataset, **where, **draws)
    assert data.augment != "resized_crop"
    return Batches(dataset, **where, **draws, augment=data.augment)


def evaluation_batches(dataset: AnyDataset, split: SplitName, samples: int | None, rank: int, world: int) -> Pairs:
    """One rank's part of a split, every image once over all ranks: (x, y) as :class:`Training` has them.

    The batches are the same for any number of ranks, dealt out in turn.

    Args:
        dataset: the images.
        split: which.
        samples: at most so many, evenly spread over the split.
        rank: this one.
        world: number of ranks.
    """
    if isinstance(dataset, Streamed):
        return evaluation(dataset, split, samples, rank, world)
    part = spread(getattr(dataset, split), samples or len(getattr(dataset, split)))
    if part.images.numel() * 4 <= CACHED:
        return _kept(dataset, part, rank, world)
    return _normalised(dataset, part, rank, world)


@lru_cache(maxsize=4)
def spread(split: Split, samples: int) -> Split:
    """At most ``samples`` images, evenly spread over the split."""
    if len(split.labels) <= samples:
        return split
    index = evenly(len(split.labels), samples)
    return Split(split.images[index], split.labels[index])


def _normalised(dataset: Dataset, split: Split, rank: int, world: int) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in list(zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True))[rank::world]:
        yield dataset.normalise(x), y


@lru_cache(maxsize=4)
def _kept(dataset: Dataset, split: Split, rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
    return list(_normalised(dataset, split, rank, world))


def check(data: config.Data, batch_size: int, world: int) -> None:
    """Refuse settings that this data set cannot serve, without the data at hand. Raises UserError naming the field."""
    if datasets[data.name].streamed:
        if data.augment == "crop_flip":
            raise _refused("data.augment", data.augment, f"{data.name}, which is streamed; choose none or resized_crop")
        for key in ("classes", "shape"):
            if getattr(data, key):
                raise _refused(f"data.{key}", getattr(data, key), f"{data.name}, which is streamed; leave it out")
        rank_rows(0, world, data.lanes, batch_size)
        return
    standard = config.Data()
    if data.augment == "resized_crop":
        raise _refused("data.augment", data.augment, f"{data.name}, which is in memory; choose none or crop_flip")
    for key in ("crop", "held_out", "lanes", "window", "scaled_decode", "randaugment", "faults"):
        if getattr(data, key) != getattr(standard, key):
            raise _refused(f"data.{key}", getattr(data, key), f"{data.name}, which is in memory; leave it out")


def _refused(key: str, value: object, whom: str) -> UserError:
    return UserError(f"{key}={value!r} is not for data.name={whom}")

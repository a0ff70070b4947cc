"""The order in which training sees the samples: a pure function of (order seed, noise, step), so nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lth_scale.data.augment import crop_flip
from lth_scale.data.dataset import Dataset
from lth_scale.errors import UserError
from lth_scale.streams import numpy_generator


def accumulation(batch_size: int, micro_batch: int, world: int) -> int:
    """Forwards per step on each of ``world`` devices; ``micro_batch`` 0 means one.

    Raises UserError with the valid world sizes when the global batch does not divide evenly.
    """
    unit = micro_batch or 1
    if batch_size % (unit * world):
        valid = [size for size in range(1, batch_size + 1) if batch_size % (unit * size) == 0]
        sizes = ", ".join(map(str, valid)) or "none; micro_batch must divide batch_size"
        part = f"train.micro_batch={micro_batch} x " if micro_batch else ""
        raise UserError(
            f"train.batch_size={batch_size} is not a multiple of {part}{world} devices (hardware.devices x "
            f"hardware.nodes); valid numbers of devices: {sizes}"
        )
    return batch_size // (unit * world) if micro_batch else 1


def steps_per_epoch(train: int, batch_size: int) -> int:
    """Whole global batches of an epoch; the remainder, other samples each epoch, is dropped."""
    if not 1 <= batch_size <= train:
        raise UserError(f"train.batch_size={batch_size} is not valid; it must be in 1..{train}, the training images")
    return train // batch_size


@lru_cache(maxsize=4)
def epoch_order(order: int, noise: int, epoch: int, train: int) -> Tensor:
    """The samples of an epoch in order: a permutation of 0..train-1, int64 [train]."""
    return torch.from_numpy(numpy_generator(order, "order", noise, epoch).permutation(train))


class Batches:
    """The micro-batches of one rank for the steps ``start``..``stop - 1``: (x float32 [micro_batch, C, H, W], y int64).

    Args:
        dataset: its train split is served, normalised.
        batch_size: the global batch; one step consumes one.
        micro_batch: samples of one forward on one device; 0 means batch_size / world.
        start: the first step.
        stop: one past the last step.
        order: the order stream's seed.
        augment_seed: the augment stream's seed.
        augment: ``crop_flip`` pads by 4 with 0, crops back and mirrors, by (augment_seed, noise, epoch, sample).
        noise: 0, or another number for another order and augmentation of the same seeds.
        rank: which rows of each global batch, of ``world`` equal parts.
        world: number of devices.

    Raises UserError when batch_size exceeds the train split or does not divide by micro_batch x world.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        micro_batch: int,
        start: int,
        stop: int,
        order: int,
        augment_seed: int,
        augment: Literal["none", "crop_flip"],
        noise: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert 0 <= start <= stop and 0 <= rank < world
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), batch_size)
        self.accumulation = accumulation(batch_size, micro_batch, world)
        self.dataset, self.batch_size, self.start, self.stop = dataset, batch_size, start, stop
        self.order, self.augment_seed, self.augment, self.noise = order, augment_seed, augment, noise
        self.micro_batch = batch_size // (world * self.accumulation)
        self._rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulation

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.start, self.stop):
            ids = self.global_batch(step)[self._rows]
            x, y = self._images(ids, step // self.steps_per_epoch), self.dataset.train.labels.index_select(0, ids)
            if self.accumulation == 1:
                yield x, y
            else:
                yield from zip(torch.split(x, self.micro_batch), torch.split(y, self.micro_batch), strict=True)

    def global_batch(self, step: int) -> Tensor:
        """The sample ids of a step's global batch, over all ranks: int64 [batch_size]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        ids = epoch_order(self.order, self.noise, epoch, len(self.dataset.train))
        return ids[position * self.batch_size : (position + 1) * self.batch_size]

    def _images(self, ids: Tensor, epoch: int) -> Tensor:
        if self.augment == "crop_flip":
            images = self.dataset.train.images.index_select(0, ids)
            table = (self.augment_seed, self.noise, epoch, len(self.dataset.train))
            return self.dataset.normalise(crop_flip(images, ids, table))
        floats = self.dataset.normalised_train
        if floats is None:
            return self.dataset.normalise(self.dataset.train.images.index_select(0, ids))
        return floats.index_select(0, ids)

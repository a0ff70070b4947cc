"""A streamed data set as training sees it: micro-batches whose position is a pure function of the step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from lth_scale import config
from lth_scale.data.batches import accumulation, steps_per_epoch
from lth_scale.data.dataset import SPLITS, SplitName, evenly, normalise
from lth_scale.data.definition import shuffled
from lth_scale.data.index import Index
from lth_scale.data.streamed import samples as tables
from lth_scale.data.streamed.cache import Cache, default_folder
from lth_scale.data.streamed.decode import Look
from lth_scale.data.streamed.faults import Ledger
from lth_scale.data.streamed.order import epoch_order, rank_rows
from lth_scale.data.streamed.reading import EvalView, Key, Reader, TrainView, View, serve
from lth_scale.data.streamed.remote import local
from lth_scale.data.streamed.samples import Column, Samples
from lth_scale.data.streamed.shards import Shards, located
from lth_scale.errors import UserError
from lth_scale.resources import on_this_machine

EVALUATION_BATCH = 128
"""Images of one forward in evaluation; the last may be smaller."""


@dataclass(frozen=True, eq=False)
class Streamed:
    """A data set of encoded images, none of them in memory.

    Args:
        name: of the data set.
        classes: labels are below it.
        shape: (3, crop, crop), what the model sees.
        mean: per channel, in units of 1/255.
        std: per channel, in units of 1/255.
        checksum: hex SHA-256 over all shards.
        splits: what each split holds; the shards' numbers are those in ``shards``.
        rows: int64 [N] for each split: the samples' rows in the index's split that they come from.
        origins: that split of the index; a held-out validation split comes from train.
        shards: of all splits.
        data: how images are read and seen.
        ledger: the bad samples that this process has seen.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str
    splits: dict[SplitName, Samples]
    rows: dict[SplitName, Column]
    origins: dict[SplitName, SplitName]
    shards: Shards
    data: config.Data
    ledger: Ledger

    def length(self, split: SplitName) -> int:
        """How many samples a split has."""
        return len(self.splits[split])

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [..., 3, H, W] -> float32 of the same shape, on the same device: (x / 255 - mean) / std per channel."""
        return normalise(images, self.mean, self.std)

    def reader(self, split: SplitName, view: View) -> Reader:
        """Random access to a split."""
        table, rows, origin = self.splits[split], self.rows[split], self.origins[split]
        return Reader(self.shards, table, rows, origin, self.classes, view, self.data.faults > 0)

    def served(self, split: SplitName, view: View, keys: Iterable[Key]) -> Iterator[tuple[Tensor, Tensor]]:
        """The micro-batches of the keys: (uint8 [B, 3, crop, crop], int64 [B]).

        Raises UserError for a sample that cannot be read, or, with data.faults, for too many of them.
        """
        for images, labels, faults, error in serve(self.reader(split, view), keys, self.data.workers):
            self.ledger.note(split, faults)
            if error:
                raise UserError(error)
            yield images, labels


def _numbered(index: Index, found: dict[SplitName, Samples]) -> dict[SplitName, Samples]:
    """The tables with shards numbered through all splits; UserError unless they fit the index."""
    numbered: dict[SplitName, Samples] = {}
    first = 0
    for split in SPLITS:
        table, counts = found[split], [shard.samples for shard in index.splits[split]]
        if not np.array_equal(table.shard, np.repeat(np.arange(len(counts)), counts)):
            raise UserError(f"{tables.NAME} does not fit the index ({split}); prepare the data anew")
        numbered[split] = replace(table, shard=table.shard + first)
        first += len(counts)
    return numbered


def _check_labels(folder: Path, index: Index, found: dict[SplitName, Samples]) -> None:
    for split, table in found.items():
        wrong = np.flatnonzero((table.label < 0) | (table.label >= len(index.class_names)))
        if len(wrong):
            row = int(wrong[0])
            shard = located(folder, index.splits[split][int(table.shard[row])])
            raise UserError(
                f"{shard}: sample {row} of {split} (at byte {table.offset[row]}): the label {table.label[row]} is not "
                f"in 0..{len(index.class_names) - 1}; mend the source and prepare the data anew, or set data.faults"
            )


def _hold_out(index: Index, rows: dict[SplitName, Column], count: int) -> dict[SplitName, Column]:
    if len(rows["validation"]):
        raise UserError(
            f"data.held_out={count} is not valid: {index.name} has a validation split of its own "
            f"({len(rows['validation'])} images); leave it out"
        )
    if count >= len(rows["train"]):
        raise UserError(
            f"data.held_out={count} is not valid; it must be below {len(rows['train'])}, the training images"
        )
    mixed = shuffled(len(rows["train"]), index.name)
    return {**rows, "train": np.sort(mixed[count:]), "validation": np.sort(mixed[:count])}


def _check_bound(index: Index, found: dict[SplitName, Samples], data: config.Data) -> None:
    """Refuse a cache that cannot hold what the open windows read, as it would fetch whole shards again and again."""
    shards, table = index.splits["train"], found["train"]
    ends = np.zeros(len(shards), np.int64)
    np.maximum.at(ends, table.shard, table.offset + table.size)
    # A shard that is longer unpacked than it lies there is compressed.
    fetched = [
        end
        for shard, end in zip(shards, ends.tolist(), strict=True)
        if data.stage or _is_fetched(shard.file, shard.bytes, end)
    ]
    if fetched:
        smallest = max(1, min(shard.samples for shard in shards))
        windows = data.lanes * (-(-data.window // smallest) + 1)
        needed = sum(sorted(fetched)[-windows:])
        if needed > data.cache_gb * 1e9:
            raise UserError(
                f"data.cache_gb={data.cache_gb:g} is too small: data.lanes={data.lanes} with "
                f"data.window={data.window} read up to {min(windows, len(fetched))} shards side by side, "
                f"{needed / 1e9:.3g} GB; set data.cache_gb higher, or data.lanes or data.window lower"
            )


def _is_fetched(file: str, size: int, end: int) -> bool:
    return local(file) is None or end > size


def open_streamed(folder: Path, index: Index, data: config.Data) -> Streamed:
    """Open a folder of encoded images; no image is read yet.

    Raises UserError when its table is missing, damaged or does not fit the index; when ``data.held_out`` leaves no
    training images or meets a validation split; when ``data.cache_gb`` cannot hold what is read side by side; and,
    without ``data.faults``, for a label that is no class.
    """
    found = tables.read(folder, index.samples)
    numbered = _numbered(index, found)
    if not data.faults:
        _check_labels(folder, index, found)
    _check_bound(index, found, data)
    rows: dict[SplitName, Column] = {split: np.arange(len(found[split]), dtype=np.int64) for split in SPLITS}
    origins: dict[SplitName, SplitName] = {split: split for split in SPLITS}
    if data.held_out:
        rows, origins["validation"] = _hold_out(index, rows, data.held_out), "train"
    cache = Cache(on_this_machine("data.cache", data.cache) or default_folder(), int(data.cache_gb * 1e9))
    return Streamed(
        name=index.name,
        classes=len(index.class_names),
        shape=(3, data.crop, data.crop),
        mean=index.mean,
        std=index.std,
        checksum=index.checksum,
        splits={split: numbered[origins[split]].take(rows[split]) for split in SPLITS},
        rows=rows,
        origins=origins,
        shards=Shards(folder, [shard for split in SPLITS for shard in index.splits[split]], cache, data.stage),
        data=data,
        ledger=Ledger(data.faults, {split: len(part) for split, part in rows.items()}),
    )


class StreamedBatches:
    """The micro-batches of one rank for the steps ``start``..``stop - 1``: (uint8 [micro_batch, 3, H, W], int64).

    Every iteration begins at ``start``, at a cost that does not depend on it; nothing is stored. What is drawn depends
    on (augment_seed, noise, epoch, the sample's row in the index), so neither on workers nor on rank and world.

    Args:
        dataset: its train split is served.
        batch_size: the global batch; one step consumes one.
        micro_batch: samples of one forward on one device; 0 means batch_size / world.
        start: the first step.
        stop: one past the last step.
        order: the order stream's seed.
        augment_seed: the augment stream's seed.
        noise: 0, or another number for another order and augmentation of the same seeds.
        rank: which lanes of each global batch, of ``world`` equal parts.
        world: number of devices.

    Raises UserError when batch_size exceeds the train split or does not divide by the lanes or by micro_batch x world,
    or when world does not divide the lanes.
    """

    def __init__(
        self,
        dataset: Streamed,
        *,
        batch_size: int,
        micro_batch: int,
        start: int,
        stop: int,
        order: int,
        augment_seed: int,
        noise: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert 0 <= start <= stop and 0 <= rank < world
        data, table = dataset.data, dataset.splits["train"]
        self.steps_per_epoch = steps_per_epoch(len(table), batch_size)
        self.accumulation = accumulation(batch_size, micro_batch, world)
        self._columns = rank_rows(rank, world, data.lanes, batch_size)
        self.micro_batch = batch_size // (world * self.accumulation)
        self.dataset, self.start, self.stop = dataset, start, stop
        look = Look(
            data.crop, "none" if data.augment == "none" else "resized_crop", data.scaled_decode, data.randaugment
        )
        self._view = TrainView(look, augment_seed, noise)
        self._epoch = lru_cache(maxsize=2)(
            lambda epoch: epoch_order(order, noise, epoch, table.shard, data.lanes, batch_size, data.window)
        )

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulation

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.dataset.served("train", self._view, self._keys())

    def global_batch(self, step: int) -> Column:
        """The sample numbers, in the train split, of a step's global batch over all ranks: int64 [batch_size]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        found: Column = self._epoch(epoch)[position]
        return found

    def _keys(self) -> Iterator[Key]:
        for step in range(self.start, self.stop):
            mine = self.global_batch(step)[self._columns]
            for part in mine.reshape(self.accumulation, self.micro_batch):
                yield Key(step // self.steps_per_epoch, part)


def evaluation(
    dataset: Streamed, split: SplitName, samples: int | None, rank: int, world: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """One rank's part of a split, every sample once over all ranks: (uint8 [B, 3, crop, crop], int64 [B]).

    Args:
        dataset: the images.
        split: which.
        samples: at most so many, evenly spread over the split; None means all.
        rank: this one.
        world: number of ranks.
    """
    every = evenly(dataset.length(split), samples).numpy()
    mine = [every[first : first + EVALUATION_BATCH] for first in range(0, len(every), EVALUATION_BATCH)][rank::world]
    return dataset.served(split, EvalView(dataset.data.crop), [Key(0, part) for part in mine])

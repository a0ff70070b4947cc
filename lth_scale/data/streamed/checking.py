"""``lth data verify`` for encoded images: every byte of every shard, wherever it lies."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lth_scale.data import index as indexing
from lth_scale.data.dataset import SPLITS
from lth_scale.data.index import Index, Shard
from lth_scale.data.streamed import samples
from lth_scale.data.streamed.decode import Damaged, decoded
from lth_scale.data.streamed.listing import Column
from lth_scale.data.streamed.parallel import bars, each
from lth_scale.data.streamed.samples import Samples
from lth_scale.data.streamed.scanning import Entry, Scan
from lth_scale.errors import UserError

MENDING = "restore the shard, or remove the folder's index.json and prepare the data anew"


class _Task(NamedTuple):
    folder: Path
    shard: Shard
    classes: int
    rows: Column


def _fault(entry: Entry, row: Column) -> str | None:
    """What is wrong with a sample, in words; ``row`` is its offset, size, label and CRC-32 in the table."""
    places = ("offset", entry.offset), ("size", entry.size), ("label", entry.label), ("checksum", entry.crc)
    for (name, there), told in zip(places, row, strict=True):
        if there != told:
            return f"its {name} is {there}, the table says {told}"
    try:
        decoded(entry.image)
    except Damaged as error:
        return f"the image is damaged ({error})"
    return None


def _check_shard(task: _Task) -> int:
    shard, count, last = task.shard, 0, "none"
    scan = Scan(task.folder, shard.file, task.classes, MENDING)
    for entry in scan:
        fault = _fault(entry, task.rows[count]) if count < len(task.rows) else None
        if fault:
            raise UserError(f"{scan.where}: sample {entry.key}: {fault}; {MENDING}")
        count, last = count + 1, entry.key
    if not count == shard.samples == len(task.rows):
        told = f"the index says {shard.samples}, the table {len(task.rows)}"
        raise UserError(f"{scan.where} holds {count} samples (last: {last}), {told}; {MENDING}")
    if (scan.bytes, scan.sha256) != (shard.bytes, shard.sha256):
        raise UserError(f"{scan.where} is damaged (its checksum differs from the index); {MENDING}")
    return count


def _rows(table: Samples, shards: int) -> list[Column]:
    rows = np.stack([table.offset, table.size, table.label, table.crc], axis=1)
    return [rows[table.shard == number] for number in range(shards)]


def check(folder: Path, index: Index, jobs: int, progress: bool) -> None:
    """Check a folder of encoded images against its index and table: every shard's bytes, and every sample.

    Raises UserError naming the shard, and the sample where there is one: missing, truncated, a checksum, place or
    label that differs, a label out of range, an image that does not decode.
    """
    tables = samples.read(folder, index.samples)
    if indexing.encoded_checksum(index.splits) != index.checksum:
        raise UserError(f"{folder / indexing.NAME} is damaged (its checksum differs from its shards); {MENDING}")
    tasks = [
        _Task(folder, shard, len(index.class_names), rows)
        for split in SPLITS
        for shard, rows in zip(index.splits[split], _rows(tables[split], len(index.splits[split])), strict=True)
    ]
    with bars(progress) as bar, contextlib.closing(each(_check_shard, tasks, jobs)) as found:
        line = bar.add_task("verifying", total=sum(map(index.count, SPLITS)))
        for count in found:
            bar.advance(line, count)

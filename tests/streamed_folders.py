"""Small folders of encoded images, shards and index written by hand, for the tests of streaming."""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from webdataset import TarWriter

from lth_scale import config
from lth_scale.data import index as indexing
from lth_scale.data.dataset import SPLITS, SplitName
from lth_scale.data.index import Index, Shard
from lth_scale.data.streamed import samples
from lth_scale.data.streamed.decode import sound
from lth_scale.data.streamed.loading import Streamed, StreamedBatches, open_streamed
from lth_scale.data.streamed.samples import Samples
from lth_scale.files import sha256_bytes

CROP = 8
NAME = "webdataset"


def jpeg(number: int, size: tuple[int, int] = (14, 12)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def write_tar(path: Path, images: Sequence[tuple[int, bytes]]) -> None:
    """Labels and images, by WebDataset's own writer."""
    with TarWriter(str(path), encoder=False, mtime=0) as writer:
        for position, (label, image) in enumerate(images):
            writer.write({"__key__": f"{path.stem}-{position:04d}", "jpg": image, "cls": str(label).encode()})


def rows(path: Path, number: int) -> list[tuple[int, int, int, int, int, bool]]:
    """What the table says of a shard."""
    found = []
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
        for name, member in members.items():
            if name.endswith(".jpg"):
                image, label = tar.extractfile(member), tar.extractfile(members[name[:-3] + "cls"])
                assert image is not None and label is not None
                data = image.read()
                told = (member.offset_data, member.size, int(label.read()), zlib.crc32(data), sound(data))
                found.append((number, *told))
    return found


def shard_of(path: Path, count: int) -> Shard:
    data = path.read_bytes()
    return Shard(path.name, count, len(data), sha256_bytes(data))


def make_folder(
    folder: Path, train: Sequence[int], validation: Sequence[int] = (), test: Sequence[int] = (5,)
) -> Index:
    """Shards of so many samples each; a sample's label is its row in its split, so that labels tell what was served."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[SplitName, tuple[Shard, ...]] = {}
    tables: dict[SplitName, Samples] = {}
    for split, counts in zip(SPLITS, (train, validation, test), strict=True):
        shards, table, first = [], [], 0
        for number, count in enumerate(counts):
            path = folder / f"{split}-{number:06d}.tar"
            write_tar(path, [(row, jpeg(1000 * SPLITS.index(split) + row)) for row in range(first, first + count)])
            shards.append(shard_of(path, count))
            table += rows(path, number)
            first += count
        splits[split] = tuple(shards)
        tables[split] = Samples(*np.array(table, np.int64).reshape(-1, 6).T.copy())
    classes = tuple(map(str, range(max(len(table) for table in tables.values()))))
    return write_index(folder, splits, tables, classes)


def write_index(
    folder: Path,
    splits: dict[SplitName, tuple[Shard, ...]],
    tables: dict[SplitName, Samples],
    classes: tuple[str, ...],
) -> Index:
    index = Index(
        name=NAME,
        shape=(3, 0, 0),
        class_names=classes,
        split_rule="by hand",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        checksum=indexing.encoded_checksum(splits),
        splits=splits,
        storage="encoded",
        samples=samples.write(folder, tables),
    )
    indexing.write(folder, index)
    return index


def moved(folder: Path, files: dict[str, str]) -> Index:
    """The index with shards under other names, such as URLs; what they hold stays as it is."""
    index = indexing.read(folder)
    splits = {
        split: tuple(replace(shard, file=files.get(shard.file, shard.file)) for shard in shards)
        for split, shards in index.splits.items()
    }
    changed = replace(index, splits=splits)
    indexing.write(folder, changed)
    return changed


def data(folder: Path, **fields: Any) -> config.Data:
    chosen = {"crop": CROP, "lanes": 2, "window": 4, "workers": 0, "augment": "resized_crop"} | fields
    return config.Data(name=NAME, dir=str(folder), **chosen)


def opened(folder: Path, **fields: Any) -> Streamed:
    return open_streamed(folder, indexing.read(folder), data(folder, **fields))


def batches(dataset: Streamed, **fields: Any) -> StreamedBatches:
    chosen = {"batch_size": 8, "micro_batch": 0, "start": 0, "stop": 12, "order": 3, "augment_seed": 5, "noise": 0}
    return StreamedBatches(dataset, **(chosen | fields))

"""Encoded images -> shards, a table and an index: in parallel, and continued where an earlier attempt was stopped."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress

from lth_scale import files
from lth_scale.data import index as indexing
from lth_scale.data.dataset import SPLITS, SplitName
from lth_scale.data.definition import HELD_OUT_SEED, Preparation, shuffled
from lth_scale.data.index import Index, Shard
from lth_scale.data.streamed import samples
from lth_scale.data.streamed.decode import sound
from lth_scale.data.streamed.listing import Column, Listing
from lth_scale.data.streamed.parallel import bars, each
from lth_scale.data.streamed.samples import Samples
from lth_scale.data.streamed.scanning import MOST_CLASSES, Entry, entries
from lth_scale.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, as published with its models; what models pretrained on it expect of any image."""
SHAPE = (3, 0, 0)
QUALITY = 95
FORMATS = {"JPEG": "jpg"} | {name.upper(): name for name in ("png", "bmp", "gif", "webp", "ppm", "tiff")}
"""Pillow's name of what the bytes are -> suffix in the shard, whatever the file was called."""
PLAN = "prepared.json"
JOURNAL = "journal"
NO_ROWS = np.empty((0, 5), np.int64)


class Written(NamedTuple):
    """A shard in place, and what :func:`rows_of` says of its samples."""

    shard: Shard
    rows: Column


class _Task(NamedTuple):
    out: Path
    split: SplitName
    number: int
    first: int
    listing: Listing
    max_side: int

    @property
    def file(self) -> str:
        return f"{self.split}-{self.number:06d}.tar"

    @property
    def journal(self) -> Path:
        return self.out / JOURNAL / f"{self.split}-{self.number:06d}.safetensors"


def fitted(data: bytes, max_side: int) -> tuple[str, bytes]:
    """(suffix by content, image): the same bytes, unless the shorter side exceeds ``max_side`` pixels, 0 = any.

    Then it is resized to it (bicubic) and encoded as JPEG of quality 95. Raises ValueError when it is no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(FORMATS)) as image:
            if not max_side or min(image.size) <= max_side:
                return FORMATS.get(image.format or "", "jpg"), data  # MPO is a JPEG that others follow
            width, height = (round(side * max_side / min(image.size)) for side in image.size)
            small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from None
    buffer = io.BytesIO()
    small.save(buffer, "jpeg", quality=QUALITY)
    return "jpg", buffer.getvalue()


def rows_of(found: Iterable[Entry]) -> Column:
    """Offset, size, label and CRC-32 of samples, and whether they are sound: int64 [N, 5]."""
    return np.array([(e.offset, e.size, e.label, e.crc, sound(e.image)) for e in found], np.int64).reshape(-1, 5)


def _packed(task: _Task) -> bytes:
    from webdataset import TarWriter

    buffer, listing = io.BytesIO(), task.listing
    with TarWriter(buffer, encoder=False, mtime=0) as writer, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, which is kept as it is
        for position, data in enumerate(listing.contents()):
            try:
                suffix, image = fitted(data, task.max_side)
            except ValueError as error:
                path = listing.root / listing.names[position]
                raise UserError(f"{path} is not a readable image ({error}); remove or replace it") from None
            label = str(listing.labels[position]).encode()
            writer.write({"__key__": f"{task.split}-{task.first + position:08d}", suffix: image, "cls": label})
    return buffer.getvalue()


def _make(task: _Task) -> Written:
    data = _packed(task)
    # Read back as any other shard is, so that the tar file itself says where its images lie.
    rows = rows_of(entries(io.BytesIO(data), task.file, MOST_CLASSES, "report this"))
    shard = Shard(task.file, len(rows), len(data), files.sha256_bytes(data))
    files.write_bytes(task.out / task.file, data)
    told = {"bytes": str(shard.bytes), "sha256": shard.sha256}
    files.save_tensors(task.journal, {"rows": torch.from_numpy(rows)}, told)
    return Written(shard, rows)


def _kept(task: _Task) -> Written | None:
    """What an earlier attempt has left, if it is whole."""
    path = task.out / task.file
    if not (path.is_file() and task.journal.is_file()):
        return None
    with contextlib.suppress(UserError, KeyError):
        tensors, told = files.load_tensors(task.journal)
        if path.stat().st_size == int(told["bytes"]) and files.sha256_file(path) == told["sha256"]:
            rows = tensors["rows"].numpy()
            if rows.shape[1] != NO_ROWS.shape[1]:
                return None  # of a version with another table
            return Written(Shard(task.file, len(rows), int(told["bytes"]), told["sha256"]), rows)
    return None


def _ensure(task: _Task) -> Written:
    return _kept(task) or _make(task)


def _tasks(order: Preparation, splits: Mapping[SplitName, Listing]) -> Iterator[_Task]:
    for split, listing in splits.items():
        # Shuffled once and for all, so that every shard holds all classes.
        rows = shuffled(len(listing.names), f"{order.name} {split}")
        for number, first in enumerate(range(0, len(rows), order.shard_size)):
            part = listing.take(rows[first : first + order.shard_size])
            yield _Task(order.out, split, number, first, part, order.max_side)


def _plan(order: Preparation, splits: Mapping[SplitName, Listing]) -> dict[str, Any]:
    return {
        "name": order.name,
        "images": {split: len(listing.names) for split, listing in splits.items()},
        "seed": HELD_OUT_SEED,
        "shard_size": order.shard_size,
        "max_side": order.max_side,
        "files": {split: listing.digest() for split, listing in splits.items()},
    }


def _establish(out: Path, plan: dict[str, Any]) -> None:
    """Record the plan; raises UserError when the folder holds shards of another one."""
    path = out / PLAN
    if not path.exists():
        files.write_json(path, plan)
        return
    before = files.read_json(path)
    changed = [key for key in plan if before.get(key) != plan[key]]
    if changed:
        told = "; ".join(
            "the source's files changed" if key == "files" else f"{key} was {before.get(key)}, is now {plan[key]}"
            for key in changed
        )
        raise UserError(
            f"--out {out} holds part of another preparation ({told}); repeat that one's command to continue it, "
            "choose another folder, or remove this one"
        )


def check_done(out: Path, shard_size: int | None, max_side: int | None) -> None:
    """Refuse options that differ from those by which a whole folder was made; raises UserError naming them."""
    if not (out / PLAN).exists():
        return
    plan = files.read_json(out / PLAN)
    for key, value in (("shard_size", shard_size), ("max_side", max_side)):
        if value is not None and value != plan.get(key):
            option = "--" + key.replace("_", "-")
            raise UserError(f"--out {out} is whole, made with {option} {plan.get(key)}, not {value}; choose another")


def finish(
    order: Preparation, classes: tuple[str, ...], parts: Mapping[SplitName, Sequence[Written]], rule: str
) -> Index:
    """The table and the index of shards that are all in place; the caller writes the index."""
    found = {split: parts.get(split, ()) for split in SPLITS}
    shards = {split: tuple(part.shard for part in found[split]) for split in SPLITS}
    table = samples.write(order.out, {split: _table(found[split]) for split in SPLITS})
    checksum = indexing.encoded_checksum(shards)
    return Index(order.name, SHAPE, classes, rule, MEAN, STD, checksum, shards, "encoded", table)


def _table(parts: Sequence[Written]) -> Samples:
    numbers = np.repeat(np.arange(len(parts), dtype=np.int64), [len(part.rows) for part in parts])
    rows = np.concatenate([NO_ROWS, *(part.rows for part in parts)])
    return Samples(numbers, *np.ascontiguousarray(rows.T))


def _changes(max_side: int) -> str:
    if not max_side:
        return "images byte for byte as in the source"
    return (
        f"images whose shorter side exceeds {max_side} pixels resized to it and encoded anew (bicubic, JPEG of "
        f"quality {QUALITY}), so their pixels are not the source's; all others byte for byte as in the source"
    )


def _all_shards(
    order: Preparation, splits: Mapping[SplitName, Listing], bar: Progress
) -> dict[SplitName, list[Written]]:
    tasks, parts = list(_tasks(order, splits)), {split: list[Written]() for split in splits}
    lines = {split: bar.add_task(split, total=len(listing.names)) for split, listing in splits.items()}
    with contextlib.closing(each(_ensure, tasks, order.jobs)) as found:
        for task, written in zip(tasks, found, strict=True):
            parts[task.split].append(written)
            bar.advance(lines[task.split], written.shard.samples)
    return parts


def write(order: Preparation, classes: tuple[str, ...], splits: Mapping[SplitName, Listing], rule: str) -> None:
    """Write the shards of every split, the table, and last the index.

    Stopped at any moment, the same call goes on: shards that are whole stay. The bytes do not depend on the number of
    processes. Raises UserError naming an image that cannot be read, a split without images, or what differs from the
    preparation that the folder holds a part of.
    """
    for split, listing in splits.items():
        if not listing.names:
            raise UserError(f"--source {listing.root} holds no {split} images")
    _establish(order.out, _plan(order, splits))
    with bars(order.progress) as bar:
        parts = _all_shards(order, splits, bar)
    rule = f"{rule}; samples shuffled by seed {HELD_OUT_SEED}; {_changes(order.max_side)}"
    index = finish(order, classes, parts, rule)
    indexing.remove_strays(order.out, index)
    indexing.write(order.out, index)
    files.remove_folder(order.out / JOURNAL)
    files.remove_temporaries(order.out)

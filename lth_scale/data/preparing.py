"""``lth data prepare`` and ``verify``: a data set's own files -> shards and an index, and the check of the result."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from lth_scale.data import index as indexing
from lth_scale.data.dataset import SPLITS, Description, SplitName
from lth_scale.data.definition import Content, Definition, Images, Preparation, Source, datasets
from lth_scale.data.index import Index, Shard
from lth_scale.data.shards import read_shard, shard_sizes, write_shard
from lth_scale.data.streamed import checking, writing
from lth_scale.errors import UserError
from lth_scale.files import sha256_tensors

FOLDER_SIZE = 64
SHARD_SIZE = 1000
"""Images of ImageNet's size in a shard of 110 MB."""


@dataclass(frozen=True)
class Summary:
    """What was found whole: the index, and the number of shards and bytes behind it."""

    folder: Path
    index: Index
    shards: int
    bytes: int

    def __str__(self) -> str:
        index = self.index
        counts = ", ".join(f"{index.count(split):,} {split}" for split in SPLITS)
        lines = [
            f"{index.name}: {len(index.class_names):,} classes; {counts} images",
            f"{self.folder}: {self.shards:,} shards, {self.bytes / 1e9:,.3f} GB, checksum {index.checksum[:16]}",
            index.split_rule,
        ]
        return "\n".join(lines + [_part_of(index)] * bool(_part_of(index)))


def _part_of(index: Index) -> str:
    """A remark where a folder holds less than the published data set whose name it bears."""
    known = datasets[index.name].description if index.name in datasets else None
    found = (len(index.class_names), *map(index.count, SPLITS))
    if known is None or found == (known.classes, known.train, known.validation, known.test):
        return ""
    return (
        f"this is not the whole of {index.name}, which has {known.classes:,} classes, {known.train:,} train, "
        f"{known.validation:,} validation and {known.test:,} test images"
    )


def summarise(folder: Path) -> Summary:
    """The summary of a folder according to its index, its shards unread."""
    index = indexing.read(folder)
    shards = [shard for split in SPLITS for shard in index.splits[split]]
    return Summary(folder, index, len(shards), sum(shard.bytes for shard in shards))


def content_checksum(parts: dict[SplitName, Images]) -> str:
    """Hex SHA-256 over all images and labels of all splits, in order, whatever their encoding on disk."""
    tensors = {}
    for split, part in parts.items():
        tensors[f"{split}.images"] = torch.from_numpy(np.ascontiguousarray(part.images))
        tensors[f"{split}.labels"] = torch.from_numpy(part.labels)
    return sha256_tensors(tensors)


def moments(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in units of 1/255, from exact counts; a constant channel gets std 1."""
    counts = np.stack([np.bincount(images[:, c].reshape(-1), minlength=256) for c in range(images.shape[1])])
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(1)
    square = (counts * (values - mean[:, None]) ** 2).sum(1) / counts.sum(1)
    std = np.where(square > 0, np.sqrt(square), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def _check_sizes(expected: Description, content: Content) -> None:
    for split in SPLITS:
        found, wanted = len(getattr(content, split)), getattr(expected, split)
        if found != wanted:
            raise UserError(f"{expected.name}: the source gives {found} {split} images, {wanted} were expected")
    if content.train.images.shape[1:] != expected.shape:
        raise UserError(f"{expected.name}: images are {content.train.images.shape[1:]}, not {expected.shape}")


def _write_split(folder: Path, split: SplitName, part: Images, bar: Progress) -> tuple[Shard, ...]:
    task = bar.add_task(f"{split:10}", total=len(part))
    shards, first = [], 0
    for number, count in enumerate(shard_sizes(len(part), part.images[0].size)):
        rows = np.arange(first, first + count)
        shards.append(write_shard(folder, split, number, part.take(rows), first))
        bar.advance(task, count)
        first += count
    return tuple(shards)


def write_content(name: str, content: Content, out: Path, progress: bool = False) -> Summary:
    """Write shards, then the index. Interrupted, it leaves no index, and the next call starts anew."""
    out.mkdir(parents=True, exist_ok=True)
    parts: dict[SplitName, Images] = {split: getattr(content, split) for split in SPLITS}
    mean, std = moments(content.train.images)
    with Progress(disable=not progress) as bar:
        splits = {split: _write_split(out, split, part, bar) for split, part in parts.items()}
    channels, height, width = content.train.images.shape[1:]
    index = Index(
        name, (channels, height, width), content.class_names, content.rule, mean, std, content_checksum(parts), splits
    )
    indexing.remove_strays(out, index)
    indexing.write(out, index)
    return summarise(out)


def _read(name: str, definition: Definition, source: Path | None, size: int, progress: bool) -> Content:
    assert definition.read
    if definition.makes_itself:
        return definition.read(Source(Path()))
    place = source or next((path for path in definition.places if path.is_dir()), None)
    if place:
        return definition.read(Source(place, size, progress))
    if definition.fetch is None:
        raise UserError(f"{name} needs --source: {definition.needs}")
    with tempfile.TemporaryDirectory() as scratch:
        definition.fetch(Path(scratch))
        return definition.read(Source(Path(scratch), size, progress))


def _check_options(name: str, definition: Definition, sources: int, values: dict[str, int | None]) -> None:
    """Refuse options that this data set has no use for, and values below 1."""
    streamed = {"shard_size", "max_side"} if not definition.in_place else set()
    allowed = streamed | {"jobs"} if definition.streamed else {"size"} if definition.description is None else set()
    for key, value in values.items():
        if value is not None and (key not in allowed or value < 1):
            why = "it must be 1 or more" if key in allowed else f"{name} has no use for it"
            raise UserError(f"--{key.replace('_', '-')}={value} is not valid; {why}")
    if sources > 1 and not definition.in_place:
        raise UserError(f"{name} takes one --source, not {sources}")


def _done(name: str, out: Path, shard_size: int | None, max_side: int | None) -> Summary | None:
    if not (out / indexing.NAME).exists():
        return None
    done = summarise(out)
    if done.index.name != name:
        raise UserError(f"--out {out} already holds {done.index.name}; choose another folder for {name}")
    writing.check_done(out, shard_size, max_side)
    return done


def prepare(
    name: str,
    out: Path,
    source: Path | Sequence[str] | None = None,
    progress: bool = True,
    size: int | None = None,
    *,
    shard_size: int | None = None,
    max_side: int | None = None,
    jobs: int | None = None,
) -> Summary:
    """Make a data set's folder of shards; a folder that is already whole is left as it is.

    Args:
        name: a name of the registry ``datasets``.
        out: the folder; made if need be.
        source: the data set's own files; without it they are looked for where packages put them, then downloaded.
            Of webdataset, several: ``["train=SHARDS", "test=SHARDS"]``.
        progress: whether to show a bar.
        size: side of the square that images of a folder are resized to (image_folder only; default 64).
        shard_size: samples of a shard (streamed sets only; default 1000).
        max_side: pixels that an image's shorter side is bounded to (streamed sets only; default: none).
        jobs: processes (streamed sets only; default: one per core).

    Raises UserError for an unknown name, an option that the data set has no use for, a source that is missing or
    damaged, or a folder of another data set or preparation.
    """
    definition = datasets[name]
    sources = (str(source),) if isinstance(source, str | Path) else tuple(source or ())
    options = {"size": size, "shard_size": shard_size, "max_side": max_side, "jobs": jobs}
    _check_options(name, definition, len(sources), options)
    done = _done(name, out, shard_size, max_side)
    if done:
        return done
    if definition.write:
        if not sources:
            raise UserError(f"{name} needs --source: {definition.needs}")
        order = Preparation(name, sources, out, shard_size or SHARD_SIZE, max_side or 0, jobs or _cores(), progress)
        definition.write(order)
        return summarise(out)
    content = _read(name, definition, Path(sources[0]) if sources else None, size or FOLDER_SIZE, progress)
    if definition.description is not None:
        _check_sizes(definition.description, content)
    return write_content(name, content, out, progress)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def read_all(folder: Path, index: Index, progress: bool = False) -> dict[SplitName, Images]:
    """Check and decode every shard of a folder; raises UserError naming the first damaged shard and sample."""
    parts: dict[SplitName, Images] = {}
    with Progress(disable=not progress) as bar:
        task = bar.add_task("reading", total=sum(map(index.count, SPLITS)))
        for split in SPLITS:
            found = []
            for shard in index.splits[split]:
                found.append(read_shard(folder, shard, index.shape, len(index.class_names)))
                bar.advance(task, shard.samples)
            empty = np.empty((0, *index.shape), np.uint8)
            images = np.concatenate([empty, *(part.images for part in found)])
            parts[split] = Images(images, np.concatenate([np.empty(0, np.int64), *(part.labels for part in found)]))
    if content_checksum(parts) != index.checksum:
        raise UserError(f"{folder}: images and labels differ from the index's checksum; prepare the data anew")
    return parts


def verify(folder: Path, progress: bool = False, jobs: int | None = None) -> Summary:
    """Check a folder against its index: every shard's checksum and count, every label and image.

    Args:
        folder: of shards, with their index.
        progress: whether to show a bar.
        jobs: processes, of streamed sets (default: one per core).

    Raises UserError naming the shard, and the sample where there is one.
    """
    summary = summarise(folder)
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs={jobs} is not valid; it must be 1 or more")
    if summary.index.storage == "encoded":
        checking.check(folder, summary.index, jobs or _cores(), progress)
    else:
        read_all(folder, summary.index, progress)
    return summary

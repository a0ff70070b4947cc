"""``lth data prepare`` and ``verify``: a data set's own files -> shards and an index, and the check of the result."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress

from lth_scale.data import index as indexing
from lth_scale.data.dataset import SPLITS, Description, SplitName
from lth_scale.data.definition import Content, Definition, Images, Source, datasets
from lth_scale.data.index import Index, Shard
from lth_scale.data.shards import read_shard, shard_sizes, write_shard
from lth_scale.errors import UserError
from lth_scale.files import sha256_tensors

FOLDER_SIZE = 64


@dataclass(frozen=True)
class Summary:
    """What was found whole: the index, and the number of shards and bytes behind it."""

    folder: Path
    index: Index
    shards: int
    bytes: int


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


def _remove_strays(folder: Path, index: Index) -> None:
    known = {shard.file for shards in index.splits.values() for shard in shards}
    for split in SPLITS:
        for path in folder.glob(f"{split}-[0-9][0-9][0-9][0-9][0-9][0-9].tar"):
            if path.name not in known:
                path.unlink()
    for path in folder.glob("decoded-*.safetensors"):
        path.unlink()


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
    _remove_strays(out, index)
    indexing.write(out, index)
    return summarise(out)


def _read(name: str, definition: Definition, source: Path | None, size: int, progress: bool) -> Content:
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


def prepare(
    name: str, out: Path, source: Path | None = None, progress: bool = True, size: int | None = None
) -> Summary:
    """Make a data set's folder of shards; a folder that is already whole is left as it is.

    Args:
        name: a name of the registry ``datasets``.
        out: the folder; made if need be.
        source: the data set's own files; without it they are looked for where packages put them, then downloaded.
        progress: whether to show a bar.
        size: side of the square that images of a folder are resized to (image_folder only; default 64).

    Raises UserError for an unknown name, a source that is missing or damaged, or a folder of another data set.
    """
    definition = datasets[name]
    if size is not None and (definition.description is not None or size < 1):
        raise UserError(f"size={size} is not valid; it is the side in pixels of an image_folder's images")
    if (out / indexing.NAME).exists():
        done = summarise(out)
        if done.index.name != name:
            raise UserError(f"--out {out} already holds {done.index.name}; choose another folder for {name}")
        return done
    content = _read(name, definition, source, size or FOLDER_SIZE, progress)
    if definition.description is not None:
        _check_sizes(definition.description, content)
    return write_content(name, content, out, progress)


def read_all(folder: Path, index: Index, progress: bool = False) -> dict[SplitName, Images]:
    """Check and decode every shard of a folder; raises UserError naming the first damaged shard and sample."""
    parts: dict[SplitName, Images] = {}
    with Progress(disable=not progress) as bar:
        task = bar.add_task("reading", total=sum(index.samples(split) for split in SPLITS))
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


def verify(folder: Path, progress: bool = False) -> Summary:
    """Check a folder against its index: every shard's checksum and count, every label and image.

    Raises UserError naming the shard, and the sample where there is one.
    """
    summary = summarise(folder)
    read_all(folder, summary.index, progress)
    return summary

"""WebDataset shards that are already there: indexed where they lie, neither copied nor changed."""

from __future__ import annotations

import contextlib
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from lth_scale.data import index as indexing
from lth_scale.data.dataset import SPLITS, SplitName
from lth_scale.data.definition import Definition, Preparation, datasets
from lth_scale.data.index import Shard
from lth_scale.data.streamed.parallel import bars, each
from lth_scale.data.streamed.remote import local
from lth_scale.data.streamed.scanning import MOST_CLASSES, Scan
from lth_scale.data.streamed.writing import Written, finish, rows_of
from lth_scale.errors import UserError

NAME = "webdataset"
NEEDS = (
    "--source train=SHARDS --source test=SHARDS, and validation=SHARDS if there is one; SHARDS is a folder of tar "
    "files, a glob, brace notation, or what WebDataset opens (a URL, pipe:COMMAND)"
)
MENDING = "mend that shard, or leave it out"
PATTERNS = ("*.tar", "*.tar.gz", "*.tgz", "*.tar.bz2", "*.tar.xz")


class _Task(NamedTuple):
    out: Path
    split: SplitName
    file: str


def expand(shards: str) -> list[str]:
    """The shards that a folder, a glob, brace notation or a URL stands for, in order; paths are absolute.

    Raises UserError when there is none, or one does not exist.
    """
    from webdataset.shardlists import expand_urls

    if Path(shards).is_dir():
        found = sorted({str(path.absolute()) for pattern in PATTERNS for path in Path(shards).glob(pattern)})
    else:
        found = [file for url in expand_urls(shards) for file in _files(url)]
    if not found:
        raise UserError(f"--source {shards} holds no shards; it must be {NEEDS}")
    return found


def _files(url: str) -> list[str]:
    path = local(url)
    if path is None:
        return [url]
    paths = sorted(glob(str(path))) if has_magic(str(path)) else [str(path)]
    missing = [name for name in paths if not Path(name).is_file()]
    if missing:
        raise UserError(f"--source: {missing[0]} does not exist, or is not a file")
    return [str(Path(name).absolute()) for name in paths]


def parse(sources: tuple[str, ...]) -> dict[SplitName, list[str]]:
    """``("train=a.tar", "test=b.tar")`` -> the shards of each split; UserError for another split, or one missing."""
    given: dict[str, list[str]] = {}
    for source in sources:
        split, equals, shards = source.partition("=")
        if not equals or split not in SPLITS:
            raise UserError(f"--source {source} names no split; it must be {NEEDS}")
        given[split] = given.get(split, []) + expand(shards)
    if not {"train", "test"} <= set(given):
        raise UserError(f"{NAME} needs shards for train and for test: {NEEDS}")
    return {split: given[split] for split in SPLITS if split in given}


def _index(task: _Task) -> Written:
    scan = Scan(task.out, task.file, MOST_CLASSES, MENDING)
    rows = rows_of(scan)
    path = Path(task.file)
    # Shards in the folder itself may move with it.
    file = path.name if path.parent == task.out.absolute() else task.file
    return Written(Shard(file, len(rows), scan.bytes, scan.sha256), rows)


def write_index(order: Preparation) -> None:
    """Read every shard once, and write the table and the index; raises UserError naming a bad shard and sample."""
    given = parse(order.sources)
    tasks = [_Task(order.out, split, file) for split, shards in given.items() for file in shards]
    parts: dict[SplitName, list[Written]] = {split: [] for split in given}
    with bars(order.progress) as bar, contextlib.closing(each(_index, tasks, order.jobs)) as found:
        line = bar.add_task("indexing shards", total=len(tasks))
        for task, written in zip(tasks, found, strict=True):
            parts[task.split].append(written)
            bar.advance(line)
    for split, written_parts in parts.items():
        if not any(part.shard.samples for part in written_parts):
            raise UserError(f"--source {split}=... holds no samples")
    labels = [int(part.rows[:, 2].max()) for found_parts in parts.values() for part in found_parts if len(part.rows)]
    classes = tuple(str(number) for number in range(max(labels) + 1))
    rule = f"{', '.join(parts)}: shards as they were found; images byte for byte as they lie there"
    indexing.write(order.out, finish(order, classes, parts, rule))


datasets.register(NAME)(Definition(description=None, needs=NEEDS, write=write_index, in_place=True))

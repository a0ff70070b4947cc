"""Saving states: every rank streams its own ranges, and the folder appears under its name only when all have."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lth_scale import files, world
from lth_scale.checkpoint.layout import FORMAT, MANIFEST, Range, by_tensor, file_name, header
from lth_scale.checkpoint.source import Source, flat_pieces, octets
from lth_scale.checkpoint.stored import seal


@dataclass(frozen=True, eq=False)
class Part:
    """One rank's flat range of one tensor.

    Args:
        key: such as ``weights/NAME``; once per rank.
        offset: where the range starts in the flattened tensor.
        data: its numbers, on any device; of any shape, in row-major order.
        shape: the whole tensor's.
    """

    key: str
    offset: int
    data: torch.Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """What one rank has written; ``file`` is None where it had nothing to write."""

    ranges: list[Range]
    file: dict[str, Any] | None


def save(
    folder: Path,
    parts: Iterable[Part],
    step: int,
    extra: Mapping[str, Any] | None = None,
    guard: Callable[[], None] = lambda: None,
) -> int:
    """Write a state as one atomic folder, all ranks together; returns the bytes stored by all.

    Args:
        folder: where it appears, once it is whole and on disk.
        parts: this rank's ranges; those of all ranks make up every tensor exactly.
        step: global batches consumed since the initialisation.
        extra: any JSON, kept in the manifest; the first rank's counts.
        guard: called on the first rank right before the folder appears; its error prevents that.

    Raises:
        UserError: the system refused a write, on this rank or another; nothing is left behind.
    """
    scratch = world.on_first(lambda: begin(folder))
    try:
        with world.together():
            mine = write_rank(folder, scratch, world.rank(), parts)
        written = world.gathered(mine)
        return world.on_first(lambda: finish(folder, scratch, written, step, extra, guard))
    finally:
        if world.first():
            shutil.rmtree(scratch, ignore_errors=True)  # gone already when all went well


def save_state(folder: Path, state: Source, extra: Mapping[str, Any] | None = None) -> int:
    """Write a whole state from this process alone, whoever else there is; otherwise as :func:`save`."""
    entries = state.entries()
    ranges = [Range(key, 0, 0, entry.numel, entry.shape, entry.dtype) for key, entry in entries.items()]
    scratch = begin(folder)
    try:
        written = _write(folder, scratch, ranges, lambda key: state.pieces(key, entries[key]))
        return finish(folder, scratch, [written], state.step, extra)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def begin(folder: Path) -> Path:
    """Make the folder to write to, which readers ignore."""
    scratch = files.temporary(folder)
    with files.explained(folder):
        files.make_folder(folder.parent)
        scratch.mkdir()
    return scratch


def write_rank(folder: Path, scratch: Path, rank: int, parts: Iterable[Part]) -> Written:
    """Write one rank's file, if it has anything."""
    held = {part.key: part for part in _distinct(parts)}
    ranges = [
        Range(part.key, rank, part.offset, part.data.numel(), tuple(part.shape), part.data.dtype)
        for part in held.values()
    ]
    return _write(folder, scratch, ranges, lambda key: flat_pieces(held[key].data))


def _write(
    folder: Path, scratch: Path, ranges: list[Range], pieces: Callable[[str], Iterable[torch.Tensor]]
) -> Written:
    if not ranges:
        return Written([], None)
    start, order = header(ranges)
    data = (octets(piece).numpy().data for one in order for piece in pieces(one.name))
    path = scratch / file_name(ranges[0].rank)
    with files.explained(folder):
        size, sha256 = files.stream_bytes(path, itertools.chain([start], data))
    return Written(ranges, {"name": path.name, "bytes": size, "sha256": sha256})


def _distinct(parts: Iterable[Part]) -> Iterator[Part]:
    seen: set[str] = set()
    for part in parts:
        if part.data.numel() or 0 in part.shape:
            assert part.key not in seen, f"{part.key} is given twice"
            seen.add(part.key)
            yield part


def finish(
    folder: Path,
    scratch: Path,
    written: Sequence[Written],
    step: int,
    extra: Mapping[str, Any] | None,
    guard: Callable[[], None] = lambda: None,
) -> int:
    """Write the manifest and move the folder into place, if ``guard`` lets it; the bytes of all files.

    Raises RuntimeError when the ranges do not make up every tensor.
    """
    ranges = [piece for one in written for piece in one.ranges]
    try:
        by_tensor(ranges)
    except ValueError as error:
        raise RuntimeError(f"{folder} is not saved: {error}") from None
    stored = [one.file for one in written if one.file is not None]
    manifest = {
        "format": FORMAT,
        "step": step,
        "world_size": len(written),
        "files": stored,
        "ranges": [piece.record() for piece in ranges],
        "torch": torch.__version__,
        "extra": dict(extra or {}),
    }
    text = json.dumps(manifest | {"sha256": seal(manifest)}, indent=1) + "\n"
    with files.explained(folder):
        files.stream_bytes(scratch / MANIFEST, [text.encode()])
        files.sync_folder(scratch)
        guard()
        os.replace(scratch, folder)
        files.sync_folder(folder.parent)
    return sum(file["bytes"] for file in stored)

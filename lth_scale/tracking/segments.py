"""What a round's earlier attempts have logged: W&B's own files, read back.

An attempt leaves a ``.wandb`` file, a log of protobuf records in LevelDB's framing: a header of 7 bytes, then blocks of
32 KiB with chunks of (CRC 4 bytes, length 2, type 1, bytes). What a kill has torn off at its end was never logged.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK, CHUNK = 7, 1 << 15, struct.Struct("<IHB")
FULL, LAST = 1, 4
USES = "uses"  # a key of a run's config
KEPT = "artifacts"  # in an attempt's folder


def records(path: Path) -> Iterator[Any]:
    """Every whole ``wandb_internal_pb2.Record`` of a file, in order."""
    from wandb.proto import wandb_internal_pb2

    made: Any = wandb_internal_pb2  # its classes are made when it is imported
    for body, _ in _bodies(path.read_bytes()):
        record = made.Record()
        record.ParseFromString(body)
        yield record


def _bodies(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Every whole record, and where it ends."""
    place, body = HEADER, b""
    while place + CHUNK.size <= len(data):
        if BLOCK - place % BLOCK < CHUNK.size:
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = CHUNK.unpack_from(data, place)
        place += CHUNK.size
        if not kind or place + size > len(data):
            return
        body += data[place : place + size]
        place += size
        if kind in (FULL, LAST):
            yield body, place
            body = b""


def mend(path: Path) -> bool:
    """Cut off what a kill has left of a last record, which the client would stumble over; whether anything is left."""
    data = path.read_bytes()
    end = max((end for _, end in _bodies(data)), default=0)
    if 0 < end < len(data):
        os.truncate(path, end)
    return end > 0


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a file: key -> value, ``_step`` among them."""
    return [tree(record.history.item) for record in records(path) if record.WhichOneof("record_type") == "history"]


def tree(items: Iterable[Any], into: dict[str, Any] | None = None) -> dict[str, Any]:
    """Keys and values of a record; a key in parts, as that of an image's path, is a dict in a dict."""
    found: dict[str, Any] = {} if into is None else into
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        place = found
        for key in above:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def logged(path: Path) -> list[Any]:
    """The ``ArtifactRecord`` of every artifact that a file logs: name, type, aliases, digest and its files."""
    return [record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact"]


def kept(path: Path) -> list[tuple[Any, Path]]:
    """The artifacts that this program made, each with its one file, which lies in the attempt's folder."""
    folder, found = path.parents[2] / KEPT, logged(path)
    files = [(record, folder / Path(entry.local_path).name) for record in found for entry in record.manifest.contents]
    return [(record, file) for record, file in files if file.exists()]


def begun(path: Path) -> Any:
    """The ``RunRecord`` as the run was begun, None in a file torn before it."""
    return next((record.run for record in records(path) if record.WhichOneof("record_type") == "run"), None)


def uses(path: Path) -> list[str]:
    """The artifacts that its run starts from, as its config names them."""
    run = begun(path)
    return (
        [name for item in run.config.update if item.key == USES for name in json.loads(item.value_json)] if run else []
    )


def ended(path: Path) -> bool:
    """Whether a file is whole: its run has ended, well or badly."""
    return any(record.WhichOneof("record_type") == "exit" for record in records(path))


def last_step(files: list[Path]) -> int:
    """The highest step in any of the files; -1 for none."""
    return max((row["_step"] for path in files for row in history(path)), default=-1)

"""Random access to the bytes of samples, wherever their shards lie."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lth_scale.data.index import Shard
from lth_scale.data.streamed.cache import Cache
from lth_scale.data.streamed.faults import BadSample, BadShard
from lth_scale.data.streamed.remote import HEAD, local, unpacker

OPEN_FILES = 128


def located(folder: Path, shard: Shard) -> str:
    """Where a shard of a folder's index lies: a path, or what its index gives for one that is elsewhere."""
    path = local(shard.file)
    return shard.file if path is None else str(folder / path)


class Shards:
    """The shards of a data set, at most ``OPEN_FILES`` of them open in a process, the least recently read closed first.

    Forked and spawned processes may use a copy: reads by offset share no position, and spawned ones open their own.

    Args:
        folder: what relative names of shards are relative to.
        shards: of all splits; their position is their number.
        cache: where those that cannot be read in place are copied to.
        stage: whether all others are, too.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], cache: Cache, stage: bool = False) -> None:
        self.folder, self.shards, self.cache, self.stage = folder.absolute(), tuple(shards), cache, stage
        self._open: OrderedDict[int, int] = OrderedDict()
        self._lost: dict[int, str] = {}
        self.opened = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self.folder, self.shards, self.cache, self.stage)

    def __del__(self) -> None:
        for handle in getattr(self, "_open", {}).values():
            with contextlib.suppress(OSError):
                os.close(handle)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` of the (unpacked) shard.

        Raises BadShard when it cannot be opened, at once from the second time on; BadSample when it ends too early.
        """
        handle = self._handle(shard)
        data = b""
        try:
            while len(data) < size and (piece := os.pread(handle, size - len(data), offset + len(data))):
                data += piece
        except OSError as error:
            raise BadSample(f"it cannot be read ({error.strerror})") from None
        if len(data) < size:
            raise BadSample(f"the shard ends {size - len(data)} bytes before its end")
        return data

    def where(self, shard: int) -> str:
        """The shard's place, for messages."""
        return located(self.folder, self.shards[shard])

    def expect(self, shard: int, offset: int, size: int) -> None:
        """Tell the system that these bytes will be read soon, if the shard is open; it may fetch them meanwhile."""
        handle = self._open.get(shard)
        if handle is not None:
            os.posix_fadvise(handle, offset, size, os.POSIX_FADV_WILLNEED)

    def _handle(self, number: int) -> int:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if number in self._lost:
            raise BadShard(self._lost[number])
        try:
            handle = self._opened(self.shards[number])
        except BadShard as error:
            self._lost[number] = str(error)
            raise
        self.opened += 1
        self._open[number] = handle
        if len(self._open) > OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return handle

    def _opened(self, shard: Shard) -> int:
        if local(shard.file) is None:
            return self.cache.open(shard)
        where = located(self.folder, shard)
        try:
            handle = os.open(where, os.O_RDONLY)
            if not self.stage and unpacker(os.pread(handle, HEAD, 0)) is None:
                return handle
        except OSError as error:
            raise BadShard(f"the shard cannot be opened ({error.strerror})") from None
        os.close(handle)
        return self.cache.open(replace(shard, file=where))

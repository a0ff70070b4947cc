"""Shards from elsewhere, copied whole to a local folder of bounded size, once for all processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import lzma
import os
import time
import urllib.error
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lth_scale import resources
from lth_scale.data.index import Shard
from lth_scale.data.streamed.faults import BadShard
from lth_scale.data.streamed.remote import Fetched, opened, unpacked
from lth_scale.files import CHUNK, explained, make_folder, placing

TRIES = 3
BACKOFF_SECONDS = 1.0
ERRORS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)
"""What a source that drops, stalls or sends something else may raise."""


def default_folder() -> Path:
    """Where shards are kept when ``data.cache`` is empty: ``$XDG_CACHE_HOME/lth_scale/shards``."""
    return resources.cache() / "shards"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the system frees it when its holder dies. The file stays: removing it would race."""
    with explained(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check(shard: Shard, source: Fetched) -> None:
    if shard.bytes and source.count != shard.bytes:
        raise ValueError(f"it has {source.count} bytes, the index says {shard.bytes}")
    if shard.sha256 and source.digest.hexdigest() != shard.sha256:
        raise ValueError("its checksum differs from the index")


def _lasting(error: Exception) -> bool:
    """Whether another try would meet the same."""
    refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
    return refused or isinstance(error, FileNotFoundError)


class Cache:
    """A folder of fetched, unpacked shards; any number of processes may share it.

    Args:
        folder: made when the first shard is fetched.
        bound_bytes: what its shards may take together. The least recently opened ones go first; the one that was
            fetched last stays, whatever its size; files that a process has open can be read on.
    """

    def __init__(self, folder: Path, bound_bytes: int) -> None:
        self.folder, self.bound_bytes = folder, bound_bytes

    def _place(self, shard: Shard) -> Path:
        # By content where it is known, so that the same shard from two places is kept once.
        name = shard.sha256 or hashlib.sha256(shard.file.encode()).hexdigest()
        return self.folder / f"{name}.tar"

    def path(self, shard: Shard) -> Path:
        """The local, unpacked copy of a shard, fetched if need be. Another process may evict it at any time.

        Args:
            shard: its file absolute, a URL or a ``pipe:`` command; bytes 0 and sha256 "" mean not known.

        Raises BadShard when it cannot be fetched or is not what the index says, UserError when the disk is full.
        """
        os.close(self.open(shard))
        return self._place(shard)

    def open(self, shard: Shard) -> int:
        """A file descriptor of :meth:`path`, good until it is closed, also when the file is evicted meanwhile."""
        place = self._place(shard)
        handle = self._touched(place)
        if handle is None:
            with explained(place):
                make_folder(self.folder)
            with _locked(place.with_suffix(".lock")):
                handle = self._touched(place)  # another process may have fetched it meanwhile
                handle = self._fetched(shard, place) if handle is None else handle
            self._evict(place)
        return handle

    def _touched(self, place: Path) -> int | None:
        try:
            handle = os.open(place, os.O_RDONLY)
        except OSError:
            return None
        with contextlib.suppress(OSError):  # a folder that is read-only serves as well
            os.utime(handle)
        return handle

    def _fetched(self, shard: Shard, place: Path) -> int:
        for leftover in self.folder.glob(f".{place.name}.*.tmp"):  # of one that was killed while it held this lock
            leftover.unlink(missing_ok=True)
        for attempt in range(TRIES):
            try:
                return self._copied(shard, place)
            except ERRORS as error:
                problem = str(error) or type(error).__name__
                if _lasting(error):
                    break
                if attempt + 1 < TRIES:
                    time.sleep(BACKOFF_SECONDS * 2**attempt)
        raise BadShard(f"it cannot be fetched ({problem}; tries: {attempt + 1})")

    def _copied(self, shard: Shard, place: Path) -> int:
        with opened(shard.file) as source, placing(place) as out:
            _transfer(unpacked(source), out, place)
            while source.read(CHUNK):  # what follows the end of the compressed data counts for the checksum, too
                pass
            assert isinstance(source.raw, Fetched)
            _check(shard, source.raw)
            # The very file that comes into place: it can be read whatever others evict.
            return os.dup(out.fileno())

    def _evict(self, keep: Path) -> None:
        with _locked(self.folder / "eviction.lock"):
            found = []
            for path in self.folder.glob("*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total > self.bound_bytes and path != keep:
                    path.unlink(missing_ok=True)
                    total -= size


def _transfer(source: BinaryIO, out: BinaryIO, place: Path) -> None:
    while piece := source.read(CHUNK):
        with explained(place):
            out.write(piece)

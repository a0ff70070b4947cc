"""Reading what cannot be read in place: http, pipe: and whatever else WebDataset opens, packed or not."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import http.client
import io
import lzma
import os
import select
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

from lth_scale.files import CHUNK

TIMEOUT_SECONDS = 30.0
"""How long a source may stay silent."""

UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
"""By the first bytes of what they undo."""

TAR_MAGIC = slice(257, 262)
"""Where the header of a tar file's first member says ``ustar``."""

HEAD = 512
"""First bytes of a shard that tell whether it is compressed; its name does not."""


def local(file: str) -> Path | None:
    """The path of a shard that is a file of this machine; None for URLs and ``pipe:`` commands."""
    if file.startswith("file:"):
        return Path(urlsplit(file).path)
    return None if file.startswith("pipe:") or "://" in file else Path(file)


def unpacker(head: bytes) -> Callable[[BinaryIO], BinaryIO] | None:
    """What undoes the compression of a shard that begins with these ``HEAD`` bytes; None for a plain tar file."""
    if head[TAR_MAGIC] != b"ustar":
        for magic, unpack in UNPACKERS.items():
            if head.startswith(magic):
                return cast(Callable[[BinaryIO], BinaryIO], unpack)
    return None


class Fetched(io.RawIOBase):
    """A source that counts and hashes its bytes while they are read.

    Args:
        read: at most so many bytes of the source; none at its end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.count = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer, less only at the end, so that a peek sees the first block whole."""
        filled = 0
        while filled < len(buffer) and (piece := self._read(len(buffer) - filled)):
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        self.digest.update(memoryview(buffer)[:filled])
        self.count += filled
        return filled


@contextlib.contextmanager
def _requested(url: str) -> Iterator[Callable[[int], bytes]]:
    # Not through WebDataset, which calls curl: that waits for ever on a silent server and cannot say what went wrong.
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:

            def read(count: int) -> bytes:
                piece: bytes = response.read(count)
                if not piece and response.length:
                    raise ConnectionError(f"the connection was dropped {response.length} bytes before the end")
                return piece

            yield read
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise
    except http.client.HTTPException as error:
        raise ConnectionError(f"the connection was dropped ({error!r})") from None


@contextlib.contextmanager
def _piped(url: str) -> Iterator[Callable[[int], bytes]]:
    from webdataset import gopen

    stream = gopen(url, "rb")
    process: subprocess.Popen[bytes] | None = getattr(stream, "proc", None)
    try:
        yield stream.read if process is None else _output(process, stream.ignore_status)
    except BaseException:
        if process is not None:
            process.kill()
        with contextlib.suppress(Exception):  # that a killed command failed is no news
            stream.close()
        raise
    stream.close()


def _status(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise TimeoutError("its command closed its output but does not end") from None


def _output(process: subprocess.Popen[bytes], fine: list[int]) -> Callable[[int], bytes]:
    assert process.stdout is not None
    handle = process.stdout.fileno()
    poll = select.poll()
    poll.register(handle)

    def read(count: int) -> bytes:
        if not poll.poll(TIMEOUT_SECONDS * 1000):
            raise TimeoutError(f"its command wrote nothing for {TIMEOUT_SECONDS:g} seconds")
        piece = os.read(handle, count)
        if not piece and (status := _status(process)) not in fine:
            raise OSError(f"its command ended with exit status {status}")
        return piece

    return read


@contextlib.contextmanager
def opened(file: str) -> Iterator[io.BufferedReader]:
    """A shard as its source gives it; ``.raw`` is a :class:`Fetched`. Raises OSError and its kin while reading."""
    path = local(file)
    if path is not None:
        with path.open("rb", buffering=0) as stream:
            yield io.BufferedReader(Fetched(stream.read), CHUNK)
        return
    reach = _requested if file.startswith(("http://", "https://")) else _piped
    with reach(file) as read:
        yield io.BufferedReader(Fetched(read), CHUNK)


def unpacked(source: io.BufferedReader) -> BinaryIO:
    """The source without its gzip, bzip2 or xz, if it has one."""
    unpack = unpacker(source.peek(HEAD))
    return source if unpack is None else unpack(source)

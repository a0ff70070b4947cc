"""One pass over a WebDataset shard of any origin: where each sample's image lies, its label, its bytes."""

from __future__ import annotations

import http.client
import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import IO, NamedTuple

from lth_scale.data.folder import SUFFIXES
from lth_scale.data.streamed.remote import Fetched, local, opened, unpacked
from lth_scale.errors import UserError
from lth_scale.files import CHUNK

IMAGES = {suffix.removeprefix(".") for suffix in SUFFIXES}
LABELS = ("cls", "json")
MOST_CLASSES = 1 << 20
"""Bound of labels where nothing says how many classes there are."""
META = re.compile(r"__[^/]*__($|/)")
"""Names of files that belong to no sample, as WebDataset has it."""
DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, http.client.HTTPException)


class Entry(NamedTuple):
    """A sample: its key and label, where its image lies in the unpacked tar file, and the image's CRC-32 and bytes."""

    key: str
    label: int
    offset: int
    size: int
    crc: int
    image: bytes


class _Member(NamedTuple):
    key: str
    suffix: str
    offset: int
    content: bytes


class StrictInfo(tarfile.TarInfo):
    """A tar header whose damage is an error; tarfile itself takes all but the first for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictInfo:
        """The header of a block; raises ReadError unless it is one, or the block of zeros that ends an archive."""
        if len(buf) == tarfile.BLOCKSIZE and not any(buf):
            return super().frombuf(buf, encoding, errors)
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError("it ends early" if len(buf) < tarfile.BLOCKSIZE else str(error)) from None


def _drain(stream: IO[bytes]) -> None:
    while stream.read(CHUNK):
        pass


def _members(tar: tarfile.TarFile) -> Iterator[_Member]:
    from webdataset.tariterators import base_plus_ext

    while (member := tar.next()) is not None:
        key, suffix = base_plus_ext(member.name)
        if key is None or not member.isreg() or META.match(member.name):
            continue
        wanted = _kind(suffix) in IMAGES or suffix.lower() in LABELS
        stream = tar.extractfile(member) if wanted else None
        yield _Member(key, suffix.lower(), member.offset_data, stream.read() if stream else b"")


def _kind(suffix: str) -> str:
    return suffix.lower().rpartition(".")[2]


def _label(members: dict[str, bytes], classes: int) -> int:
    label: object = None
    if "cls" in members:
        label = int(members["cls"])
    elif "json" in members:
        value = json.loads(members["json"])
        label = value.get("label") if isinstance(value, dict) else None
    if not isinstance(label, int) or isinstance(label, bool):
        raise ValueError("it has no label (a .cls, or a .json with a whole number as label)")
    if not 0 <= label < classes:
        raise ValueError(f"the label {label} is not in 0..{classes - 1}")
    return label


def _entry(key: str, members: list[_Member], classes: int) -> Entry:
    images = [member for member in members if _kind(member.suffix) in IMAGES]
    if len(images) != 1:
        raise ValueError(f"it has {len(images)} images, not one")
    label = _label({member.suffix: member.content for member in members}, classes)
    image = images[0].content
    return Entry(key, label, images[0].offset, len(image), zlib.crc32(image), image)


def entries(stream: IO[bytes], where: str, classes: int, mending: str) -> Iterator[Entry]:
    """The samples of an unpacked tar file in order; the files of a sample follow one another and share their key.

    Raises UserError naming ``where`` and the sample, ending in ``mending``: a tar file that is damaged or has no end,
    a sample without exactly one image, or without a label in 0..classes-1.
    """
    key = "none"
    try:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictInfo) as tar:
            for key, members in groupby(_members(tar), attrgetter("key")):
                yield _entry(key, list(members), classes)
        _drain(stream)
    except DAMAGE as error:
        raise UserError(f"{where} is damaged in or after sample {key} ({error}); {mending}") from None
    except ValueError as error:
        raise UserError(f"{where}: sample {key}: {error}; {mending}") from None


class Scan:
    """One pass over a shard: iterating gives its samples; then ``bytes`` and ``sha256`` of the file are known.

    Args:
        folder: what a relative ``file`` is relative to.
        file: a path, or what WebDataset opens; gzip, bzip2 and xz are unpacked on the way.
        classes: labels are below it.
        mending: what the user should do when something is wrong.
    """

    def __init__(self, folder: Path, file: str, classes: int, mending: str) -> None:
        path = local(file)
        self.where = file if path is None else str(folder / path)
        self.classes, self.mending = classes, mending
        self.bytes, self.sha256 = 0, ""

    def __iter__(self) -> Iterator[Entry]:
        try:
            with opened(self.where) as source:
                yield from entries(unpacked(source), self.where, self.classes, self.mending)
                _drain(source)
                assert isinstance(source.raw, Fetched)
                self.bytes, self.sha256 = source.raw.count, source.raw.digest.hexdigest()
        except DAMAGE as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{self.where} cannot be read ({why}); {self.mending}") from None

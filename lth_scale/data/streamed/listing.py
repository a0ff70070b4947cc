"""The images of a split before they are read: files of class folders, or pieces of a tar file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.progress import Progress

from lth_scale.data.folder import SUFFIXES
from lth_scale.errors import UserError

Column = npt.NDArray[np.int64]
NO_PLACES: Column = np.empty((0, 2), np.int64)


class Listing(NamedTuple):
    """Images in the order of their classes, then of their names.

    Args:
        root: the folder that the names are relative to, or the tar file.
        names: ``CLASS/FILE``.
        labels: int64 [N].
        places: offset and size of each in the tar file, int64 [N, 2]; [0, 2] for the files of a folder.
    """

    root: Path
    names: list[str]
    labels: Column
    places: Column = NO_PLACES

    def take(self, rows: Column) -> Listing:
        """Those rows."""
        names = [self.names[row] for row in rows.tolist()]
        return Listing(self.root, names, self.labels[rows], self.places[rows] if len(self.places) else NO_PLACES)

    def contents(self) -> Iterator[bytes]:
        """Every image's bytes; raises UserError naming one that cannot be read whole."""
        try:
            yield from self._pieces() if len(self.places) else ((self.root / n).read_bytes() for n in self.names)
        except OSError as error:
            raise UserError(f"{error.filename or self.root} cannot be read ({error.strerror}); mend that") from None

    def _pieces(self) -> Iterator[bytes]:
        with self.root.open("rb") as stream:
            for name, (offset, size) in zip(self.names, self.places.tolist(), strict=True):
                data = os.pread(stream.fileno(), size, offset)
                if len(data) < size:
                    raise UserError(f"{self.root} ends inside {name}; download it again")
                yield data

    def digest(self) -> str:
        """Hex SHA-256 of all that is listed."""
        digest = hashlib.sha256("\n".join([str(self.root.resolve()), *self.names]).encode(errors="surrogateescape"))
        digest.update(self.labels.tobytes())
        digest.update(self.places.tobytes())
        return digest.hexdigest()


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image; hidden files are none."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not os.path.basename(name).startswith(".")


def class_folders(folder: Path) -> tuple[str, ...]:
    """The names of the subfolders that are not hidden, sorted."""
    with os.scandir(folder) as found:
        return tuple(sorted(entry.name for entry in found if entry.is_dir() and not entry.name.startswith(".")))


def _below(folder: Path, name: str) -> Iterator[str]:
    for place, _, files in os.walk(folder / name, followlinks=True):
        inner = os.path.relpath(place, folder)
        yield from (f"{inner}/{file}" for file in files if is_image(file))


def list_folder(folder: Path, classes: tuple[str, ...], bar: Progress) -> Listing:
    """The images below class folders; raises UserError for a class folder that is not one of ``classes``."""
    unknown = [name for name in class_folders(folder) if name not in set(classes)]
    if unknown:
        raise UserError(f"{folder / unknown[0]}: no such class in the training images; rename or remove it")
    found = [sorted(_below(folder, name)) for name in bar.track(classes, description=f"listing {folder.name}")]
    labels = np.repeat(np.arange(len(classes)), [len(names) for names in found])
    return Listing(folder, [name for names in found for name in names], labels.astype(np.int64))

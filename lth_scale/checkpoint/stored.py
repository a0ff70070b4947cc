"""States on disk, read by ranges; a file is read from only after its checksum was found to hold."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lth_scale import files
from lth_scale.checkpoint.layout import MANIFEST, Range, by_tensor, file_name, mapped
from lth_scale.checkpoint.source import Entry, Source, State
from lth_scale.errors import UserError


def seal(manifest: Mapping[str, Any]) -> str:
    """Checksum of a manifest, over all but the checksum itself."""
    plain = json.loads(json.dumps({key: value for key, value in manifest.items() if key != "sha256"}))
    return files.sha256_bytes(json.dumps(plain, sort_keys=True).encode())


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved state; raises UserError naming a missing or damaged one."""
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder} is not a complete checkpoint: {MANIFEST} is missing")
    manifest = files.read_json(folder / MANIFEST)
    named = re.match(r"step_(\d+)", folder.name)  # its number stands in no file that has a checksum
    try:
        whole = all(set(file) >= {"name", "bytes", "sha256"} for file in manifest["files"])
        sealed = manifest.get("sha256", None) in (None, seal(manifest))  # older ones have none
        if not (whole and sealed) or type(manifest["step"]) is not int or (named and int(named[1]) != manifest["step"]):
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{folder / MANIFEST} is damaged; restore it or remove {folder}") from None
    return dict(manifest)


class Stored(Source):
    """A saved state. Nothing of it is in memory: ranges are views of the files' memory maps wherever they can be.

    Args:
        folder: where it lies.
        manifest: what :func:`load_manifest` gave.

    Raises:
        KeyError, TypeError, ValueError: the manifest is damaged; :meth:`open` says so to the user.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder, self.manifest, self.step = folder, manifest, int(manifest["step"])
        ranges = [Range.parse(record) for record in manifest["ranges"]]
        self._files = {_rank(file["name"]): file for file in manifest["files"]}
        self._ranges: dict[int, list[Range]] = {rank: [] for rank in self._files}
        for piece in ranges:
            if piece.rank not in self._files:
                raise ValueError(f"{file_name(piece.rank)} is not among its files")
            self._ranges[piece.rank].append(piece)
        self._pieces_of = by_tensor(ranges)
        self._entries = {key: Entry(pieces[0].shape, pieces[0].dtype) for key, pieces in self._pieces_of.items()}
        self._sound: set[int] = set()
        self._maps: dict[int, dict[str, torch.Tensor]] = {}

    @classmethod
    def open(cls, folder: Path) -> Stored:
        """Open a saved state by its manifest; raises UserError naming a missing or damaged one."""
        manifest = load_manifest(folder)
        try:
            return cls(folder, manifest)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            why = f" ({error})" if type(error) is ValueError else ""
            raise UserError(f"{folder / MANIFEST} is damaged{why}; restore it or remove {folder}") from None

    @property
    def extra(self) -> dict[str, Any]:
        """What was kept beside the state."""
        return dict(self.manifest["extra"])

    @property
    def ranks(self) -> list[int]:
        """Those that have a file, in order."""
        return sorted(self._files)

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(file["bytes"] for file in self.manifest["files"])

    def share(self, key: str, rank: int, size: int) -> tuple[int, int]:
        """Where as many ranks wrote it, each gets what it wrote: no range then lies in several files."""
        if size == self.manifest["world_size"]:
            mine = [piece for piece in self._pieces_of[key] if piece.rank == rank]
            return (mine[0].offset, mine[0].offset + mine[0].length) if mine else (0, 0)
        return super().share(key, rank, size)

    def entries(self) -> Mapping[str, Entry]:
        """As the manifest has them."""
        return self._entries

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """A view of a file's memory map where the range lies in one file. Raises UserError naming a damaged file."""
        pieces = self._pieces_of[key]
        first = max(0, bisect_right(pieces, start, key=lambda piece: piece.offset) - 1)
        found = []
        for piece in pieces[first:]:
            if piece.offset >= stop:
                break
            flat = self._map(piece.rank)[key]
            found.append(flat[max(0, start - piece.offset) : stop - piece.offset])
        return _joined(found, self._entries[key].dtype)

    def verify(self, ranks: Iterable[int] | None = None) -> None:
        """Check the files of these ranks, or of all. Raises UserError naming a damaged one."""
        for rank in self.ranks if ranks is None else ranks:
            self._verify(rank)
            self._map(rank)

    def trust(self) -> None:
        """Take all files for sound: other ranks have verified those that this one has not."""
        self._sound = set(self._files)

    def _verify(self, rank: int) -> None:
        if rank in self._sound:
            return
        file = self._files[rank]
        path = self.folder / file["name"]
        try:
            whole = path.stat().st_size == file["bytes"] and files.sha256_file(path) == file["sha256"]
        except FileNotFoundError:
            raise self._damaged(path, "it is missing") from None
        except OSError as error:
            raise self._damaged(path, f"it cannot be read, {error.strerror}") from None
        if not whole:
            raise self._damaged(path, "its checksum is not the manifest's")
        self._sound.add(rank)

    def _map(self, rank: int) -> dict[str, torch.Tensor]:
        if rank not in self._maps:
            self._verify(rank)
            path = self.folder / file_name(rank)
            try:
                self._maps[rank] = mapped(path, self._ranges[rank])
            except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
                raise self._damaged(path, str(error)) from None
        return self._maps[rank]

    def _damaged(self, path: Path, why: str) -> UserError:
        return UserError(f"{path} is damaged: {why}; restore it or remove {self.folder}")


def _rank(name: str) -> int:
    found = re.fullmatch(r"rank_(\d{5,})\.safetensors", name)
    if found is None or file_name(int(found[1])) != name:
        raise ValueError(f"{name!r} is not the name of a rank's file")
    return int(found[1])


def _joined(pieces: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat([piece.view(torch.uint8) for piece in pieces] or [torch.empty(0, dtype=torch.uint8)]).view(dtype)


def load_state(folder: Path) -> State:
    """Read a whole state into memory after its checksums hold; raises UserError naming the damaged file."""
    stored = Stored.open(folder)
    stored.verify()
    return stored.whole()

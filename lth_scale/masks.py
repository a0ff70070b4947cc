"""Masks: which weights of a network survive, 1 bit a weight in memory as in files, with a checksum inside the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open

from lth_scale import files, world
from lth_scale.bits import PIECE, Bytes, size_in_bytes
from lth_scale.bits import Bits as Bits
from lth_scale.errors import UserError

FORMAT = "lth_scale.mask"
VERSION = "1"

Shape = tuple[int, ...]


class Mask(Mapping[str, torch.Tensor]):
    """Parameter name -> bool tensor of the parameter's full shape, made at each call; True means kept.

    Never changes once made; held in packed bits, which may be the memory map of its file.

    Args:
        tensors: bool tensors, which are copied.

    Raises:
        TypeError: a tensor is not bool.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, kept in tensors.items():
            if kept.dtype != torch.bool:
                raise TypeError(f"mask {name} has dtype {kept.dtype}, not torch.bool")
        self._shapes = {name: tuple(kept.shape) for name, kept in tensors.items()}
        self._bits = {name: Bits.pack(kept.detach().cpu().reshape(-1).numpy()) for name, kept in tensors.items()}
        self._counts: dict[str, tuple[int, int]] | None = None
        self._sha256: str | None = None

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], bits: Mapping[str, Bits]) -> Mask:
        """The mask of these tensors, from all bits of each; it shares their memory."""
        mask = cls({})
        mask._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        assert all(len(bits[name]) == prod(shape) for name, shape in shapes.items()), "other bits than weights"
        mask._bits = {name: Bits(bits[name].packed(), 0, len(bits[name])) for name in shapes}
        return mask

    @classmethod
    def ones(cls, shapes: Mapping[str, Shape]) -> Mask:
        """The dense network's mask: everything kept."""
        return cls.of(shapes, {name: Bits.ones(prod(shape)) for name, shape in shapes.items()})

    @classmethod
    def assembled(cls, shapes: Mapping[str, Shape], parts: Mapping[str, tuple[int, Bits]]) -> Mask:
        """The mask of the whole from the ranges that the processes hold; all processes call it together.

        Args:
            shapes: name -> shape of every tensor, the same on all processes.
            parts: name -> (where the range starts, its bits) of this process's ranges. Over all processes they make up
                the tensors, every weight once.

        Returns:
            All of it on the first process, an empty mask on the others.
        """
        _check_parts(shapes, parts)
        starts, total = {}, 0
        for name, shape in shapes.items():
            starts[name], total = total, total + size_in_bytes(prod(shape))
        whole = np.zeros(total if world.first() else 0, np.uint8)
        for first in range(0, total, PIECE):
            piece = np.zeros(min(PIECE, total - first), np.uint8)
            for name, (offset, bits) in parts.items():
                _place_within(piece, 8 * (starts[name] - first) + offset, bits)
            if world.size() > 1:
                dist.reduce(torch.from_numpy(piece), 0)  # a sum of disjoint bits is their union
            if world.first():
                whole[first : first + len(piece)] = piece
        if not world.first():
            return cls({})
        return cls.of(shapes, {name: Bits(whole, 8 * starts[name], prod(shape)) for name, shape in shapes.items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self._bits[name][:]).reshape(self._shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)

    def __contains__(self, name: object) -> bool:
        return name in self._bits

    def __eq__(self, other: object) -> bool:
        """Same names, shapes and values; the order of names does not matter."""
        if not isinstance(other, Mask):
            return NotImplemented
        return self._shapes == other._shapes and all(np.array_equal(*pair) for pair in self._beside(other))

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.kept:,} of {self.numel:,} kept, density {self.density:.4g})"

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name -> shape."""
        return dict(self._shapes)

    def range(self, name: str, start: int, stop: int) -> Bits:
        """A range of a flattened tensor, sharing the mask's memory."""
        return self._bits[name].range(start, stop)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Name -> (weights kept, weights)."""
        if self._counts is None:
            self._counts = {name: (bits.count(), len(bits)) for name, bits in self._bits.items()}
        return dict(self._counts)

    @property
    def kept(self) -> int:
        """Weights that survive."""
        return sum(kept for kept, _ in self.counts().values())

    @property
    def numel(self) -> int:
        """All prunable weights."""
        return sum(map(len, self._bits.values()))

    @property
    def density(self) -> float:
        """Surviving prunable weights / all prunable weights; 1 for an empty mask."""
        return self.kept / self.numel if self.numel else 1.0

    def sha256(self) -> str:
        """Hex hash over names, shapes and bits; independent of the order of names."""
        if self._sha256 is None:
            self._sha256 = _digest({name: bits.pieces() for name, bits in self._bits.items()}, self._shapes)
        return self._sha256

    def within(self, other: Mask) -> bool:
        """Whether every weight kept here is kept in ``other`` too, a mask of the same tensors."""
        return self._shapes == other._shapes and not any((mine & ~theirs).any() for mine, theirs in self._beside(other))

    def distance(self, other: Mask) -> float:
        """The share of the weights that one of two masks of the same tensors keeps and the other does not."""
        assert self._shapes == other._shapes
        return sum(int(np.bitwise_count(a ^ b).sum()) for a, b in self._beside(other)) / self.numel

    def _beside(self, other: Mask) -> Iterator[tuple[Bytes, Bytes]]:
        """Packed pieces of both masks, of equal shapes, side by side."""
        for name, bits in self._bits.items():
            yield from zip(bits.pieces(), other._bits[name].pieces(), strict=True)

    def check_model(self, shapes: Mapping[str, Shape]) -> None:
        """Raises UserError naming the tensors by which this mask and a model's prunable tensors differ."""
        wrong = [f"{name} is missing in the mask" for name in shapes if name not in self]
        wrong += [f"{name} is not a prunable tensor of the model" for name in self if name not in shapes]
        wrong += [
            f"{name} has shape {self._shapes[name]} in the mask and {tuple(shape)} in the model"
            for name, shape in shapes.items()
            if name in self and self._shapes[name] != tuple(shape)
        ]
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise UserError("the mask does not fit the model: " + "; ".join(wrong[:5]) + more)

    def save(self, path: Path) -> None:
        """Write a safetensors file, 1 bit a weight; equal masks give equal bytes, whatever the order of names."""
        head = _head(self._shapes, self.sha256())
        with files.placing(path) as stream, files.explained(path):
            stream.write(head)
            for name in sorted(self._bits):
                for piece in self._bits[name].pieces():
                    stream.write(piece.data)

    @classmethod
    def load(cls, path: Path) -> Mask:
        """Map what :meth:`save` wrote. Raises UserError naming a file that is missing, damaged or not a mask."""
        metadata, places = _read_places(path)
        shapes, digest = _read_header(path, metadata)
        _check_places(path, places, shapes)
        with path.open("rb") as stream:
            # Read, not looked at through the map: what nobody asks for stays out of this process's memory.
            stored = {name: _stored(stream, entry) for name, entry in places.items()}
            if _digest(stored, shapes) != digest:
                raise _damaged(path, "its bits do not match its checksum")
            data = np.asarray(np.memmap(stream, np.uint8, "r"))
        first = {name: 8 * entry["data_offsets"][0] for name, entry in places.items()}
        mask = cls.of(shapes, {name: Bits(data, first[name], prod(shape)) for name, shape in shapes.items()})
        mask._sha256 = digest
        return mask


def _digest(packed: Mapping[str, Iterable[Bytes]], shapes: Mapping[str, Shape]) -> str:
    """Hex SHA-256 over names, shapes and bits, in name order."""
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(f"{name}|{shapes[name]}|".encode())
        for piece in packed[name]:
            digest.update(piece.data)
    return digest.hexdigest()


def _check_parts(shapes: Mapping[str, Shape], parts: Mapping[str, tuple[int, Bits]]) -> None:
    """Proves that all processes together hold as many bits as there are weights."""
    held = torch.tensor([len(parts[name][1]) if name in parts else 0 for name in shapes], dtype=torch.int64)
    if world.size() > 1:
        dist.all_reduce(held)
    for (name, shape), count in zip(shapes.items(), held.tolist(), strict=True):
        assert count == prod(shape), f"{name}: the processes hold {count} bits of {prod(shape)} weights"


def _place_within(piece: Bytes, at: int, bits: Bits) -> None:
    """Place what of a run lies in ``piece``; its first bit belongs to bit ``at``, which may be outside."""
    first, last = max(0, -at), min(len(bits), 8 * len(piece) - at)
    if first < last:
        bits.range(first, last).place(piece, at + first)


def _head(shapes: Mapping[str, Shape], digest: str) -> bytes:
    """What a safetensors file begins with, as the library writes it.

    The metadata has a single entry: the library writes several in an order that differs from call to call.
    """
    header = {"format": FORMAT, "version": VERSION, "sha256": digest, "shapes": shapes}
    table: dict[str, Any] = {"__metadata__": {"mask": json.dumps(header, sort_keys=True)}}
    start = 0
    for name in sorted(shapes):
        size = size_in_bytes(prod(shapes[name]))
        table[name] = {"dtype": "U8", "shape": [size], "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); restore it, or remove it to have it made anew")


def _read_places(path: Path) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """(Metadata, name -> entry) of a safetensors file that the library finds whole; offsets from the file's start."""
    try:
        with safe_open(path, framework="pt") as checked:
            metadata = dict(checked.metadata() or {})
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            table = json.loads(stream.read(size))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    table.pop("__metadata__", None)
    for entry in table.values():
        entry["data_offsets"] = [8 + size + offset for offset in entry["data_offsets"]]
    return metadata, table


def _read_header(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Shape], str]:
    """(Name -> shape, checksum) as the file states them."""
    try:
        header = json.loads(metadata["mask"])
        if (header["format"], header["version"]) != (FORMAT, VERSION):
            raise ValueError
        shapes = {str(name): tuple(int(side) for side in shape) for name, shape in header["shapes"].items()}
        return shapes, str(header["sha256"])
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is not a mask file of version {VERSION}; point to a mask.safetensors") from None


def _check_places(path: Path, places: Mapping[str, dict[str, Any]], shapes: Mapping[str, Shape]) -> None:
    """Raises UserError unless exactly the stated tensors are there, each of the right size."""
    if places.keys() != shapes.keys():
        raise _damaged(path, f"it should hold {sorted(shapes)} and holds {sorted(places)}")
    for name, entry in places.items():
        if entry["dtype"] != "U8" or entry["shape"] != [size_in_bytes(prod(shapes[name]))]:
            raise _damaged(path, f"{name} has {entry['shape']} {entry['dtype']}, which is not {shapes[name]} in bits")


def _stored(stream: BinaryIO, entry: Mapping[str, Any]) -> Iterator[Bytes]:
    """The bytes of one tensor of a file, in pieces."""
    start, stop = entry["data_offsets"]
    stream.seek(start)
    for first in range(start, stop, PIECE):
        yield np.frombuffer(stream.read(min(PIECE, stop - first)), np.uint8)

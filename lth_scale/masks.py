"""Mask: which weights of a network survive. Stored at 1 bit a weight, with a checksum inside the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from lth_scale import files
from lth_scale.errors import UserError

FORMAT = "lth_scale.mask"
VERSION = "1"

Shape = tuple[int, ...]


def _size(shape: Shape) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _pack(kept: torch.Tensor) -> torch.Tensor:
    """Bool tensor of any shape -> uint8 [ceil(numel / 8)], the first weight in the lowest bit."""
    flat = kept.detach().cpu().contiguous().reshape(-1)
    return torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))


def _unpack(bits: torch.Tensor, shape: Shape) -> torch.Tensor:
    flat = np.unpackbits(bits.numpy(), count=_size(shape), bitorder="little")
    return torch.from_numpy(flat.view(np.bool_)).reshape(shape)


def _digest(packed: Mapping[str, torch.Tensor], shapes: Mapping[str, Shape]) -> str:
    """Hex SHA-256 over names, shapes and bits, in name order."""
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(f"{name}|{tuple(shapes[name])}|".encode())
        digest.update(packed[name].numpy().data)
    return digest.hexdigest()


class Mask(Mapping[str, torch.Tensor]):
    """Parameter name -> bool tensor of the parameter's full shape; True means kept. Never changes once made.

    Args:
        tensors: bool tensors. Those on the CPU are taken over, not copied: the caller must not write to them again.

    Raises:
        TypeError: a tensor is not bool.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, kept in tensors.items():
            if kept.dtype != torch.bool:
                raise TypeError(f"mask {name} has dtype {kept.dtype}, not torch.bool")
        self._tensors = {name: kept.detach().cpu() for name, kept in tensors.items()}
        self._counts: dict[str, tuple[int, int]] | None = None

    @classmethod
    def ones(cls, shapes: Mapping[str, Shape]) -> Mask:
        """The dense network's mask: everything kept."""
        return cls({name: torch.ones(tuple(shape), dtype=torch.bool) for name, shape in shapes.items()})

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        """Same names, shapes and values; the order of names does not matter."""
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(self[name], other[name]) for name in self)

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.kept:,} of {self.numel:,} kept, density {self.density:.4g})"

    @property
    def shapes(self) -> dict[str, Shape]:
        """Name -> shape."""
        return {name: tuple(kept.shape) for name, kept in self._tensors.items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Name -> (weights kept, weights)."""
        if self._counts is None:
            self._counts = {
                name: (int(torch.count_nonzero(kept)), kept.numel()) for name, kept in self._tensors.items()
            }
        return dict(self._counts)

    @property
    def kept(self) -> int:
        """Weights that survive."""
        return sum(kept for kept, _ in self.counts().values())

    @property
    def numel(self) -> int:
        """All prunable weights."""
        return sum(numel for _, numel in self.counts().values())

    @property
    def density(self) -> float:
        """Surviving prunable weights / all prunable weights; 1 for an empty mask."""
        return self.kept / self.numel if self.numel else 1.0

    def sha256(self) -> str:
        """Hex hash over names, shapes and bits; independent of the order of names."""
        return _digest({name: _pack(kept) for name, kept in self._tensors.items()}, self.shapes)

    def within(self, other: Mapping[str, torch.Tensor]) -> bool:
        """Whether every weight kept here is kept in ``other`` too, a mask of the same tensors."""
        return self.keys() == other.keys() and not any(bool((self[name] & ~other[name]).any()) for name in self)

    def check_model(self, shapes: Mapping[str, Shape]) -> None:
        """Raises UserError naming the tensors by which this mask and a model's prunable tensors differ."""
        wrong = [f"{name} is missing in the mask" for name in shapes if name not in self]
        wrong += [f"{name} is not a prunable tensor of the model" for name in self if name not in shapes]
        wrong += [
            f"{name} has shape {self.shapes[name]} in the mask and {tuple(shape)} in the model"
            for name, shape in shapes.items()
            if name in self and self.shapes[name] != tuple(shape)
        ]
        if wrong:
            more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise UserError("the mask does not fit the model: " + "; ".join(wrong[:5]) + more)

    def save(self, path: Path) -> None:
        """Write a safetensors file, 1 bit a weight; equal masks give equal bytes, whatever the order of names."""
        packed = {name: _pack(self[name]) for name in sorted(self)}
        files.save_tensors(path, packed, _header(self.shapes, _digest(packed, self.shapes)))

    @classmethod
    def load(cls, path: Path) -> Mask:
        """Read what :meth:`save` wrote. Raises UserError naming a file that is missing, damaged or not a mask."""
        packed, metadata = files.load_tensors(path)
        shapes, digest = _read_header(path, metadata)
        _check_bits(path, packed, shapes)
        if _digest(packed, shapes) != digest:
            raise _damaged(path, "its bits do not match its checksum")
        return cls({name: _unpack(packed[name], shape) for name, shape in shapes.items()})


def _header(shapes: Mapping[str, Shape], digest: str) -> dict[str, str]:
    """A single entry: safetensors writes several in an order that differs from call to call."""
    header = {"format": FORMAT, "version": VERSION, "sha256": digest, "shapes": shapes}
    return {"mask": json.dumps(header, sort_keys=True)}


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}); restore it, or remove it to have it made anew")


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


def _check_bits(path: Path, packed: Mapping[str, torch.Tensor], shapes: Mapping[str, Shape]) -> None:
    """Raises UserError unless exactly the stated tensors are there, each of the right size, with unused bits 0."""
    if packed.keys() != shapes.keys():
        raise _damaged(path, f"it should hold {sorted(shapes)} and holds {sorted(packed)}")
    for name, bits in packed.items():
        size = _size(shapes[name])
        if bits.dtype != torch.uint8 or tuple(bits.shape) != (-(-size // 8),):
            raise _damaged(path, f"{name} has {tuple(bits.shape)} {bits.dtype}, which is not {shapes[name]} in bits")
        if size % 8 and int(bits[-1]) >> size % 8:
            raise _damaged(path, f"{name} has bits set beyond its last weight")

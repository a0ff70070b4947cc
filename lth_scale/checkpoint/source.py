"""Training states that are read by ranges: in memory, put together from others, or times a mask."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from lth_scale.files import CHUNK

PARTS = ("weights", "buffers", "optimizer")
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Entry:
    """What one tensor of a state is."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)


class Kept(Protocol):
    """What is asked of a mask: names, shapes, and the bits of a range, whose ``[:]`` is a bool array."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameter name -> shape."""

    def range(self, name: str, start: int, stop: int, /) -> Any:
        """The bits of a flat range of one parameter."""


class Source(ABC):
    """Everything that training goes on from; its tensors, called ``weights/NAME``, ``buffers/NAME`` and
    ``optimizer/NAME/KEY``, are read by flat ranges, so that none of it need be in memory.
    """

    step: int
    """Global batches consumed since the initialisation."""

    @abstractmethod
    def entries(self) -> Mapping[str, Entry]:
        """Key -> shape and dtype."""

    @abstractmethod
    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """A flat range [stop - start] on the CPU. It may share memory with the state: not to be written to."""

    def share(self, key: str, rank: int, size: int) -> tuple[int, int]:
        """(Start, stop) of the part of a tensor that is one rank's when ``size`` ranks share the reading."""
        numel = self.entries()[key].numel
        return numel * rank // size, numel * (rank + 1) // size

    def whole(self) -> State:
        """All of it in memory, copied."""
        return assembled({key: self._copy(key, entry) for key, entry in self.entries().items()}, self.step)

    def _copy(self, key: str, entry: Entry) -> torch.Tensor:
        made = torch.empty(entry.numel, dtype=entry.dtype)
        at = 0
        for piece in self.pieces(key, entry):
            made[at : at + len(piece)] = piece
            at += len(piece)
        return made.reshape(entry.shape)

    def pieces(self, key: str, entry: Entry) -> Iterator[torch.Tensor]:
        """A tensor's consecutive flat ranges, of some MiB each."""
        size = CHUNK // entry.dtype.itemsize
        for start in range(0, entry.numel, size):
            yield self.read(key, start, min(start + size, entry.numel))

    def masked(self, mask: Kept) -> Source:
        """The state times a mask: weights and optimizer state of pruned places are +0.0. Computed as it is read."""
        return Masked(self, mask)

    def digest(self, part: str = "") -> str:
        """Hex SHA-256 over names, dtypes, shapes and bytes, as :func:`lth_scale.files.sha256_tensors` has it.

        With ``part``, such as ``weights``, only over its tensors, under their plain names.
        """
        prefix, digest = f"{part}/" if part else "", hashlib.sha256()
        for key, entry in sorted(self.entries().items()):
            if key.startswith(prefix):
                digest.update(f"{key.removeprefix(prefix)}|{entry.dtype}|{entry.shape}|".encode())
                for piece in self.pieces(key, entry):
                    digest.update(octets(piece).numpy().data)
        return digest.hexdigest()

    def differences(self, other: Source) -> list[str]:
        """Keys whose bits, dtype or shape differ between two states, or that only one of them has."""
        mine, theirs = self.entries(), other.entries()
        return [
            key
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key) or not self._same(key, mine[key], other)
        ]

    def _same(self, key: str, entry: Entry, other: Source) -> bool:
        both = zip(self.pieces(key, entry), other.pieces(key, entry), strict=True)
        return all(torch.equal(octets(mine), octets(theirs)) for mine, theirs in both)


def flat_pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Consecutive flat ranges of some MiB, on the tensor's own device; none without numbers."""
    return tensor.detach().reshape(-1).split(CHUNK // tensor.element_size()) if tensor.numel() else ()


def octets(flat: torch.Tensor) -> torch.Tensor:
    """The bytes of a flat tensor, as uint8 on the CPU; not a copy where they lie there."""
    return flat.detach().cpu().contiguous().view(torch.uint8)


@dataclass(frozen=True)
class State(Source):
    """A state in memory, under plain parameter names.

    Args:
        weights: parameter name -> tensor of its full shape, in fp32.
        buffers: buffer name -> tensor.
        optimizer: parameter name -> state key (such as ``exp_avg``) -> tensor; empty before the first step.
        step: global batches consumed since the initialisation.
    """

    weights: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    step: int = 0

    def flat(self) -> dict[str, torch.Tensor]:
        """One table of ``weights/NAME``, ``buffers/NAME`` and ``optimizer/NAME/KEY``."""
        table = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        table |= {f"buffers/{name}": tensor for name, tensor in self.buffers.items()}
        table |= {
            f"optimizer/{n}/{key}": tensor for n, entries in self.optimizer.items() for key, tensor in entries.items()
        }
        return table

    def entries(self) -> dict[str, Entry]:
        """Of the tensors held."""
        return {key: Entry(tuple(tensor.shape), tensor.dtype) for key, tensor in self.flat().items()}

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """The state's own memory."""
        return self._tensor(key).detach().reshape(-1)[start:stop].cpu()

    def pieces(self, key: str, entry: Entry) -> Iterator[torch.Tensor]:
        """Of a tensor that is flattened once, which copies one in another memory format."""
        for piece in flat_pieces(self._tensor(key)):
            yield piece.cpu()

    def _tensor(self, key: str) -> torch.Tensor:
        part, _, name = key.partition("/")
        if part == "optimizer":
            parameter, _, entry = name.rpartition("/")
            return self.optimizer[parameter][entry]
        return (self.weights if part == "weights" else self.buffers)[name]


def assembled(table: Mapping[str, torch.Tensor], step: int) -> State:
    """The state whose flat table this is."""
    state = State({}, {}, {}, step)
    for key, tensor in table.items():
        part, _, name = key.partition("/")
        if part == "optimizer":
            parameter, _, entry = name.rpartition("/")
            state.optimizer.setdefault(parameter, {})[entry] = tensor
        else:
            (state.weights if part == "weights" else state.buffers)[name] = tensor
    return state


class Composite(Source):
    """A state that takes each part from another one; without ``optimizer``, as before the first step."""

    def __init__(self, weights: Source, buffers: Source, optimizer: Source | None, step: int) -> None:
        self.step = step
        self._parts = {"weights": weights, "buffers": buffers} | ({"optimizer": optimizer} if optimizer else {})
        self._entries = {
            key: entry
            for part, source in self._parts.items()
            for key, entry in source.entries().items()
            if key.startswith(f"{part}/")
        }

    def entries(self) -> Mapping[str, Entry]:
        """Of all parts."""
        return self._entries

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """From the part's source."""
        return self._parts[key.partition("/")[0]].read(key, start, stop)


class Masked(Source):
    """A state times a mask; buffers, and optimizer state of another shape than the weights, are as they were."""

    def __init__(self, source: Source, mask: Kept) -> None:
        self.step = source.step
        self._source, self._mask, self._entries, shapes = source, mask, source.entries(), mask.shapes
        self._names: dict[str, str] = {}  # key -> parameter, of what the mask applies to
        for key, entry in self._entries.items():
            if (name := _parameter(key)) in shapes and tuple(shapes[name]) == entry.shape:
                self._names[key] = name

    def entries(self) -> Mapping[str, Entry]:
        """Those of the unmasked state."""
        return self._entries

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """A range with zeros at pruned places."""
        flat = self._source.read(key, start, stop)
        if key not in self._names:
            return flat
        words = flat.view(_WORDS[flat.element_size()])  # all bits 0 is +0.0 in every dtype; no NaN is touched
        keep = torch.from_numpy(self._mask.range(self._names[key], start, stop)[:])
        return torch.where(keep, words, torch.zeros((), dtype=words.dtype)).view(flat.dtype)


def _parameter(key: str) -> str:
    """The parameter that a key belongs to; empty for a buffer's."""
    part, _, name = key.partition("/")
    return {"weights": name, "optimizer": name.rpartition("/")[0]}.get(part, "")

"""How a state lies on disk: one safetensors file a rank of flat ranges, and a manifest that says what lies where."""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lth_scale.checkpoint.source import PARTS, Entry

MANIFEST = "MANIFEST.json"
FORMAT = 1

# Names in safetensors files, in the order in which the library lays dtypes out: wide ones first keeps all aligned.
DTYPES = {
    **{"U64": torch.uint64, "I64": torch.int64, "F64": torch.float64, "C64": torch.complex64},
    **{"F32": torch.float32, "U32": torch.uint32, "I32": torch.int32, "BF16": torch.bfloat16, "F16": torch.float16},
    **{"U16": torch.uint16, "I16": torch.int16, "F8_E5M2FNUZ": torch.float8_e5m2fnuz},
    **{"F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
}
_PLACE = {dtype: place for place, dtype in enumerate(DTYPES.values())}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BY_TORCH_NAME = {str(dtype): dtype for dtype in DTYPES.values()}

# Without it, a file larger than the machine's memory is refused: its pages might all be written to. They never are.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True)
class Range:
    """A flat range of one tensor, in one rank's file.

    Args:
        shape: the full tensor's.
    """

    name: str
    rank: int
    offset: int
    length: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def stored(self) -> Entry:
        """How the file has it: in its full shape where it is the whole tensor, flat where it is a part."""
        return Entry(self.shape if self.length == math.prod(self.shape) else (self.length,), self.dtype)

    def record(self) -> dict[str, Any]:
        """For the manifest."""
        return vars(self) | {"shape": list(self.shape), "dtype": str(self.dtype)}

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> Range:
        """What :meth:`record` gave. Raises KeyError, TypeError or ValueError when it is damaged."""
        rank, offset, length = (_count(record[key]) for key in ("rank", "offset", "length"))
        shape = tuple(_count(side) for side in record["shape"])
        return cls(str(record["name"]), rank, offset, length, shape, _BY_TORCH_NAME[record["dtype"]])


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value


def file_name(rank: int) -> str:
    """Of a rank's file."""
    return f"rank_{rank:05d}.safetensors"


def by_tensor(ranges: Iterable[Range]) -> dict[str, list[Range]]:
    """Key -> its ranges in order of their place. Raises ValueError unless they make up every tensor exactly."""
    found: dict[str, list[Range]] = {}
    for piece in ranges:
        found.setdefault(piece.name, []).append(piece)
    for key, pieces in found.items():
        pieces.sort(key=lambda piece: (piece.offset, piece.length))
        _require_exact(key, pieces)
    return found


def _require_exact(key: str, pieces: Sequence[Range]) -> None:
    if key.partition("/")[0] not in PARTS:
        raise ValueError(f"{key} is no tensor of a state")
    if len({(piece.shape, piece.dtype) for piece in pieces}) > 1:
        raise ValueError(f"ranges of {key} differ in shape or dtype")
    at, numel = 0, math.prod(pieces[0].shape)
    for piece in pieces:
        if piece.offset < at:
            raise ValueError(f"ranges of {key} overlap at {piece.offset}")
        if piece.offset > at:
            raise ValueError(f"ranges of {key} leave out {at} to {piece.offset}")
        at += piece.length
    if at != numel:
        raise ValueError(f"ranges of {key} end at {at}, its size is {numel}")


def header(ranges: Iterable[Range], metadata: Mapping[str, str] | None = None) -> tuple[bytes, list[Range]]:
    """(What a safetensors file of these begins with, the order in which their bytes follow), as the library has it."""
    order, at = sorted(ranges, key=lambda piece: (_PLACE[piece.dtype], piece.name)), 0
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for piece in order:
        end = at + piece.length * piece.dtype.itemsize
        table[piece.name] = {
            "dtype": _NAMES[piece.dtype],
            "shape": list(piece.stored.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def mapped(path: Path, ranges: Iterable[Range]) -> dict[str, torch.Tensor]:
    """Key -> flat tensor in the memory map of a safetensors file. Raises ValueError when a range is not in the file."""
    with path.open("rb") as stream:
        data = mmap.mmap(  # private: a stray write reaches no file
            stream.fileno(), 0, mmap.MAP_PRIVATE | _NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
        )
    base = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : min(base, len(data))])
    return {piece.name: _view(data, base, table.get(piece.name), piece) for piece in ranges}


def _view(data: mmap.mmap, base: int, found: Mapping[str, Any] | None, piece: Range) -> torch.Tensor:
    if found is None:
        raise ValueError(f"{piece.name} is missing")
    start, stop = found["data_offsets"]
    size = piece.length * piece.dtype.itemsize
    if Entry(tuple(found["shape"]), DTYPES[found["dtype"]]) != piece.stored or stop - start != size:
        raise ValueError(f"{piece.name} is not what the manifest says")
    if start < 0 or base + stop > len(data):
        raise ValueError(f"{piece.name} lies beyond its end")
    if not size:
        return torch.empty(0, dtype=piece.dtype)
    return torch.frombuffer(data, dtype=piece.dtype, count=piece.length, offset=base + start)

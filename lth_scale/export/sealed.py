"""Safetensors files of our own kinds, written whole or not at all, and checked as a whole when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open

from lth_scale import files
from lth_scale.checkpoint import Entry
from lth_scale.checkpoint.stored import seal
from lth_scale.errors import UserError
from lth_scale.tickets import stream

Tensors = dict[str, torch.Tensor]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        word: what ``--format`` calls it.
        version: of its layout.
    """

    word: str
    version: str = "1"

    @property
    def marks(self) -> dict[str, str]:
        """The metadata that tell it from others."""
        return {"format": f"lth_scale.{self.word}", "version": self.version}


def write(path: Path, kind: Kind, stored: Tensors, about: Mapping[str, str]) -> int:
    """Write a file with its checksums; its bytes.

    Args:
        stored: name -> tensor, as the file has it.
        about: further metadata, as texts.

    Raises:
        UserError: the system refuses the write.
    """
    told = {**kind.marks, **about, "contents": _digest(stored)}
    entries = {n: (Entry(tuple(t.shape), t.dtype), partial(_pieces, t)) for n, t in stored.items()}
    return stream(path, entries, told | {"sha256": seal(told)})


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    yield tensor.flatten()


def read(path: Path, kind: Kind, unpack: Callable[[dict[str, str], Tensors], Found]) -> Found:
    """What ``unpack`` makes of the metadata and the tensors of a file whose checksums hold.

    Raises:
        UserError: naming a file that is missing, damaged, or of another kind.
    """
    metadata, stored = _opened(path)
    if not kind.marks.items() <= metadata.items():
        word = kind.word
        raise UserError(
            f"{path} is not a {word} file of version {kind.version}; lth ticket export --format {word} makes one"
        )
    try:
        if metadata["sha256"] != seal(metadata) or metadata["contents"] != _digest(stored):
            raise ValueError("it does not match its checksums")
        return unpack(metadata, stored)
    except (KeyError, ValueError, TypeError, LZMAError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); make it anew") from None


def _digest(stored: Mapping[str, torch.Tensor]) -> str:
    parts = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in sorted(stored.items())]
    sums = [
        files.sha256_bytes(t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for _, t in sorted(stored.items())
    ]
    return files.sha256_bytes("\n".join([*parts, *sums]).encode())


def _opened(path: Path) -> tuple[dict[str, str], Tensors]:
    try:
        with safe_open(path, framework="pt") as held:
            return dict(held.metadata() or {}), {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}); make it anew") from None

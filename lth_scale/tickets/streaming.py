"""One safetensors file of any size, written piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from lth_scale import files
from lth_scale.checkpoint.layout import Range, header
from lth_scale.checkpoint.source import Entry, octets

Pieces = Callable[[], Iterable[torch.Tensor]]


def stream(path: Path, tensors: Mapping[str, tuple[Entry, Pieces]], metadata: Mapping[str, str]) -> int:
    """Write a file that appears whole or not at all; its bytes.

    Args:
        tensors: name -> (what it is, a function that gives its consecutive flat ranges).

    Raises:
        UserError: a damaged source, or the system refuses the write.
    """
    entries = {name: entry for name, (entry, _) in tensors.items()}
    start, order = header([Range(n, 0, 0, e.numel, e.shape, e.dtype) for n, e in entries.items()], metadata)
    with files.placing(path) as out:
        with files.explained(path):
            out.write(start)
        for one in order:
            for piece in tensors[one.name][1]():
                with files.explained(path):
                    out.write(octets(piece).numpy().data)
        return out.tell()

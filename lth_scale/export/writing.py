"""One safetensors file of weights and buffers under their plain names, whatever the ranks and the strategy were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lth_scale import files
from lth_scale.checkpoint.layout import Range, header
from lth_scale.checkpoint.source import Source, octets


def write(state: Source, path: Path, about: Mapping[str, str]) -> int:
    """Stream a state's weights and buffers into one file; its bytes.

    ``model.load_state_dict(safetensors.torch.load_file(path), strict=False)`` reads it: strict, where the model keeps
    no buffer out of its state dict.

    Args:
        state: read by ranges, so that it need not fit in memory.
        path: appears whole or not at all.
        about: the file's metadata.

    Raises:
        UserError: a damaged source, or the system refuses the write.
    """
    keys = {}
    for key in state.entries():
        part, _, name = key.partition("/")
        if part != "optimizer":
            keys[name] = key
    entries = {name: state.entries()[key] for name, key in keys.items()}
    start, order = header([Range(n, 0, 0, e.numel, e.shape, e.dtype) for n, e in entries.items()], about)
    with files.placing(path) as stream:
        stream.write(start)
        for piece in order:
            for data in _pieces(state, keys[piece.name], piece):
                with files.explained(path):
                    stream.write(data)
        return stream.tell()


def _pieces(state: Source, key: str, whole: Range) -> Iterator[memoryview]:
    size = files.CHUNK // whole.dtype.itemsize
    for start in range(0, whole.length, size):
        yield octets(state.read(key, start, min(start + size, whole.length))).numpy().data

"""One safetensors file of weights and buffers under their plain names, whatever the ranks and the strategy were."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from lth_scale import tickets
from lth_scale.checkpoint import Source


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
    tensors = {}
    for key, entry in state.entries().items():
        part, _, name = key.partition("/")
        if part != "optimizer":
            tensors[name] = (entry, partial(state.pieces, key, entry))
    return tickets.stream(path, tensors, about)

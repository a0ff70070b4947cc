"""A state whose layers come from two others."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lth_scale.checkpoint import Entry, Source


class Spliced(Source):
    """Weights and buffers of one state, at step 0, but for some that another gives; no optimizer state.

    Args:
        carried: gives all tensors but
        fresh: those of these names, without ``weights/`` or ``buffers/``, which
        own: gives.
    """

    step = 0

    def __init__(self, carried: Source, own: Source, fresh: frozenset[str]) -> None:
        self._sources: dict[str, Source] = {}
        for source, given in ((carried, False), (own, True)):
            for key in source.entries():
                part, _, name = key.partition("/")
                if part != "optimizer" and (name in fresh) == given:
                    self._sources[key] = source

    def entries(self) -> Mapping[str, Entry]:
        """Of both."""
        return {key: source.entries()[key] for key, source in self._sources.items()}

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """From whichever has it."""
        return self._sources[key].read(key, start, stop)

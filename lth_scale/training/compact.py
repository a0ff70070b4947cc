"""Training without dead units: network, mask and states as they are without them, and the way back to whole ones.

On disk everything has its original names, shapes and coordinates; what is trained is a view of it, made at load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from lth_scale import structured
from lth_scale.checkpoint import Entry, Part, Source
from lth_scale.masks import Mask
from lth_scale.models.coupling import Group
from lth_scale.models.narrowing import Cut, cuts, narrowed
from lth_scale.shards import EMA


class Compact:
    """A round without the units that its mask leaves no weight, into or out of them: they reach no output.

    Where there are none, everything passes through as it is.

    Args:
        groups: the model's coupled units; none leaves the network whole.
        mask: the round's.
        start: the round's start state, mask applied. What dead units have in it, they keep.
    """

    def __init__(self, groups: Sequence[Group], mask: Mask, start: Source) -> None:
        self._groups, self._whole, self._start = groups, mask, start
        self._kept = structured.connected(groups, mask)
        entries = start.entries()
        shapes = {_name(key): entry.shape for key, entry in entries.items() if not key.startswith("optimizer/")}
        self._cuts = cuts(groups, self._kept, shapes)

    @property
    def mask(self) -> Mask:
        """The round's, of the network that is trained."""
        if not self._cuts:
            return self._whole
        return Mask({name: self._cuts[name].of(m) if name in self._cuts else m for name, m in self._whole.items()})

    def network(self, model: nn.Module) -> nn.Module:
        """What is trained of a network in its original size."""
        return narrowed(model, self._groups, self._kept) if self._cuts else model

    def narrow(self, source: Source) -> Source:
        """A whole state as that of the network that is trained."""
        return Narrow(source, self._cuts) if self._cuts else source

    def widened(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Ranges of the trained network's state as those of the whole one: what tiled the one tiles the other."""
        for part in parts:
            cut = self._cuts.get(_name(part.key))
            yield self._widened(part, cut) if cut and cut.shape == tuple(part.shape) else part

    def _widened(self, part: Part, cut: Cut) -> Part:
        start, stop = part.offset, part.offset + part.data.numel()
        first, last = cut.around(start, stop)
        data = self._dead(part, first, last)
        data[cut.flat(start, stop) - first] = part.data.reshape(-1).cpu()
        return Part(part.key, first, data, cut.whole)

    def _dead(self, part: Part, first: int, last: int) -> torch.Tensor:
        """What dead units had at the start, copied: averages begin at the weights, other optimizer state at 0."""
        average = part.key.endswith(f"/{EMA}")
        for key in (part.key, *([f"weights/{_name(part.key)}"] if average else [])):
            if key in self._start.entries():
                return self._start.read(key, first, last).clone()
        return torch.zeros(last - first, dtype=part.data.dtype)


class Narrow(Source):
    """A state without what is cut away; optimizer state of another shape than the weights is as it was.

    Args:
        source: the whole state.
        cuts: name of a parameter or buffer -> what stays of it.
    """

    def __init__(self, source: Source, cuts: Mapping[str, Cut]) -> None:
        self.step, self._source = source.step, source
        whole = source.entries()
        self._cuts = {k: cut for k, e in whole.items() if (cut := cuts.get(_name(k))) and cut.whole == e.shape}
        self._entries = {k: Entry(self._cuts[k].shape, e.dtype) if k in self._cuts else e for k, e in whole.items()}

    def entries(self) -> Mapping[str, Entry]:
        """In the shapes that are left."""
        return self._entries

    def read(self, key: str, start: int, stop: int) -> torch.Tensor:
        """A range of what is left, copied."""
        if key not in self._cuts or start == stop:
            return self._source.read(key, start, stop)
        places = self._cuts[key].flat(start, stop)
        first = int(places[0])
        return self._source.read(key, first, int(places[-1]) + 1)[places - first]


def _name(key: str) -> str:
    """The parameter or buffer that a key of a state belongs to."""
    part, _, name = key.partition("/")
    return name.rpartition("/")[0] if part == "optimizer" else name

"""Named random streams: every draw's generator is a pure function of (stream seed, stream name, counters).

No global random state is read or kept, so nothing has to be saved to resume, and streams cannot disturb one another.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, stream: str, *counters: int | str) -> int:
    """A 63-bit seed for one draw, independent of every other (seed, stream, counters)."""
    text = "/".join([str(seed), stream, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def torch_generator(seed: int, stream: str, *counters: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`derive`."""
    return torch.Generator().manual_seed(derive(seed, stream, *counters))


def numpy_generator(seed: int, stream: str, *counters: int | str) -> np.random.Generator:
    """A counter-based (Philox) generator seeded by :func:`derive`: the same numbers on every platform."""
    return np.random.Generator(np.random.Philox(derive(seed, stream, *counters)))

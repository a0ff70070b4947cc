"""Named random streams: every draw's generator is a pure function of (stream seed, stream name, counters).

No global random state is read or kept, so nothing has to be saved to resume, and streams cannot disturb one another.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch


def derive(seed: int, stream: str, *counters: int | str) -> int:
    """A 63-bit seed for one draw, independent of every other (seed, stream, counters)."""
    text = "/".join([str(seed), stream, *map(str, counters)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def uniforms(count: int, seed: int, stream: str, *counters: int | str) -> list[float]:
    """``count`` numbers in [0, 1) of 53 bits, straight from SHAKE-128: seeding a generator costs more."""
    text = "/".join([str(seed), stream, *map(str, counters)])
    words = struct.unpack(f"<{count}Q", hashlib.shake_128(text.encode()).digest(8 * count))
    return [(word >> 11) * 2.0**-53 for word in words]


def torch_generator(seed: int, stream: str, *counters: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`derive`."""
    return torch.Generator().manual_seed(derive(seed, stream, *counters))


def numpy_generator(seed: int, stream: str, *counters: int | str) -> np.random.Generator:
    """A counter-based (Philox) generator seeded by :func:`derive`: the same numbers on every platform."""
    return np.random.Generator(np.random.Philox(derive(seed, stream, *counters)))

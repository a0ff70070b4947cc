"""Named random streams: every draw's generator is a pure function of (stream seed, stream name, counters).

No global random state is read or kept, so nothing has to be saved to resume, and streams cannot disturb one another.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def _text(seed: int, stream: str, counters: tuple[int | str, ...]) -> bytes:
    return "/".join([str(seed), stream, *map(str, counters)]).encode()


def derive(seed: int, stream: str, *counters: int | str) -> int:
    """A 63-bit seed for one draw, independent of every other (seed, stream, counters)."""
    return int.from_bytes(hashlib.sha256(_text(seed, stream, counters)).digest()[:8], "little") >> 1


def uniforms(count: int, seed: int, stream: str, *counters: int | str) -> list[float]:
    """``count`` numbers in [0, 1) of 53 bits, straight from SHAKE-128: seeding a generator costs more."""
    words = struct.unpack(f"<{count}Q", hashlib.shake_128(_text(seed, stream, counters)).digest(8 * count))
    return [(word >> 11) * 2.0**-53 for word in words]


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """For libraries that draw from torch's global CPU generator only: seeded inside, as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def torch_generator(seed: int, stream: str, *counters: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`derive`."""
    return torch.Generator().manual_seed(derive(seed, stream, *counters))


def numpy_generator(seed: int, stream: str, *counters: int | str) -> np.random.Generator:
    """A counter-based (Philox) generator seeded by :func:`derive`: the same numbers on every platform."""
    return np.random.Generator(np.random.Philox(derive(seed, stream, *counters)))

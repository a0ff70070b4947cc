"""Saving and reading need memory for pieces, not for the state."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lth_scale import checkpoint
from lth_scale.checkpoint import State, Stored
from lth_scale.files import read_json, write_json
from lth_scale.masks import Mask

pytestmark = pytest.mark.slow

MIB = 1 << 20
LIBC = ctypes.CDLL(None)
M_MMAP_THRESHOLD = -3
SIZE, BOUND = 256, 16  # MiB
SIDE = 2048  # 16 MiB in fp32


def anonymous() -> int:
    """MiB of this process's memory that no file stands for."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def added(work: Callable[[], object]) -> int:
    """MiB by which anonymous memory rises at its highest, looked at every millisecond."""
    LIBC.malloc_trim(0)  # what is free already must not hide what is used
    before, seen, stop = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(anonymous())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        kept = work()
        seen.append(anonymous())
        del kept
    finally:
        stop.set()
        watcher.join()
    return max(seen) - before


def measure(folder: Path) -> None:
    LIBC.mallopt(M_MMAP_THRESHOLD, MIB // 2)  # large pieces go back to the system as soon as they are free
    count = SIZE * MIB // (4 * SIDE * SIDE)
    weights = {f"w{index}": torch.full((SIDE, SIDE), float(index)) for index in range(count // 2)}
    made = State(weights, optimizer={name: {"m": torch.full((SIDE, SIDE), 2.0)} for name in weights}, step=3)
    told = {"saving": added(lambda: checkpoint.save_state(folder / "s", made))}
    told["comparing"] = added(lambda: Stored.open(folder / "s").differences(made))
    told["hashing"] = added(lambda: Stored.open(folder / "s").digest())
    mask = Mask({"w0": torch.rand(SIDE, SIDE) < 0.5, "w1": torch.rand(SIDE, SIDE) < 0.5})
    told["hashing masked"] = added(lambda: Stored.open(folder / "s").masked(mask).digest())
    stored = Stored.open(folder / "s")
    told["touching every byte"] = added(
        lambda: [stored.read(key, 0, entry.numel).sum() for key, entry in stored.entries().items()]
    )
    told["whole"] = added(stored.whole)
    told["whole of memory"] = added(made.whole)
    told["loading"] = added(lambda: checkpoint.load_state(folder / "s"))
    write_json(folder / "told.json", told)


def test_only_whole_needs_memory_for_the_state(tmp_path: Path) -> None:
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True)  # a fork has its parent's heap, and its holes
    told = read_json(tmp_path / "told.json")
    print(told)
    controls = [told.pop(name) for name in ("whole", "whole of memory", "loading")]
    assert all(SIZE - BOUND < control < SIZE + BOUND for control in controls), controls
    assert all(used < BOUND for used in told.values()), told


if __name__ == "__main__":
    measure(Path(sys.argv[1]))

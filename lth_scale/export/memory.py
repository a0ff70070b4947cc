"""How much memory a contender takes: a process of its own loads the file and runs it."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def grown(
    contender: str, path: Path, shape: tuple[int, int, int], batches: Sequence[int], threads: int
) -> list[float] | None:
    """MiB that a fresh process grows by from its runtime alone, at its highest so far, after a call of each batch size.

    Args:
        contender: one of :data:`lth_scale.export.contenders.CONTENDERS`.
        path: its file.
        shape: of one image.
        batches: ascending.
        threads: of the runtime.

    Returns:
        None where the system does not tell.
    """
    if not STATUS.exists():
        return None
    words = [contender, str(path), json.dumps(shape), json.dumps(list(batches)), str(threads)]
    done = subprocess.run([sys.executable, "-m", __name__, *words], capture_output=True, text=True)
    if done.returncode:
        return None
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _kibibytes(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def _measured(contender: str, path: Path, shape: Sequence[int], batches: Sequence[int], threads: int) -> list[float]:
    from lth_scale.export.contenders import CONTENDERS
    from lth_scale.export.timing import pinned

    entry = CONTENDERS[contender]
    importlib.import_module(entry.runtime)
    peaks = []
    with pinned(threads):
        with contextlib.suppress(OSError):
            RESET.write_text("5")  # the highest so far is forgotten
        before = _kibibytes("VmHWM")
        run = entry.load(path, threads)
        for batch in batches:
            run(np.ones((batch, *shape), np.float32))
            peaks.append((_kibibytes("VmHWM") - before) / 1024)
    return peaks


if __name__ == "__main__":
    name, file, *numbers = sys.argv[1:]
    print(json.dumps(_measured(name, Path(file), *map(json.loads, numbers))))

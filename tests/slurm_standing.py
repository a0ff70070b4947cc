"""``lth`` for jobs of tests: training stands still after step N for as long as there is a file RUN/stand_N.

So a fault hits the middle of a round on any machine, and what is trained does not depend on how long it takes. A signal
ends the standing. Where there is a file RUN/eat_N training takes as many bytes as it holds.
A cluster file's ``command`` puts this before ``PYTHON -m lth_scale task RUN ...``.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

from lth_scale import cli


def stand(run: Path) -> None:
    early: list[int] = []  # as lth_scale/slurm/element.py has it, which is not there yet
    signal.signal(signal.SIGUSR1, lambda number, _: early.append(number))
    from lth_scale.training import stopping

    on_step = stopping.Stop.on_step

    def standing(self: Any, trainer: Any, module: Any, step: int) -> None:
        while early:
            signal.raise_signal(early.pop())
        file = run / f"stand_{step}"
        if file.exists():
            (run / f"stands_{step}").touch()
        while file.exists() and not stopping._heard:
            time.sleep(0.02)
        if (eat := run / f"eat_{step}").exists():
            eaten = bytearray(b"x") * int(eat.read_text())
            time.sleep(60)
            del eaten
        on_step(self, trainer, module, step)

    stopping.Stop.on_step = standing  # type: ignore[method-assign]


if __name__ == "__main__":
    words = sys.argv[4:]
    if words[0] == "task" and "--failed" not in words:
        stand(Path(words[1]))
    sys.exit(cli.main(words))

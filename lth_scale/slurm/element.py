"""``lth task``, which ``slurm/round.sbatch`` calls. It takes note of the warning before the time limit at once.

What it needs for training takes seconds to import, and as long as nobody heeds SIGUSR1 it ends a process.
"""

from __future__ import annotations

import signal
from pathlib import Path

from lth_scale.words import parser


def task(words: list[str]) -> int:
    """``lth task RUN ...``: an array's element; exit codes as in slurm/round.sbatch."""
    warned: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: warned.append(number))
    made = parser("task", "run")
    for option in ("--arm", "--job"):
        made.add_argument(option, required=True)
    for option in ("--round", "--index"):
        made.add_argument(option, type=int, required=True)
    made.add_argument("--failed", type=int)
    flags = made.parse_args(words)
    from lth_scale.slurm import job

    what = job.task(Path(flags.run), flags.arm, flags.round, flags.index)
    if flags.failed is not None:
        return job.failed(Path(flags.run), what, flags.job, flags.failed)
    return job.work(Path(flags.run), what, flags.job, warned)

"""docs/benchmarks.md: the measured speeds, from the CSVs that the benchmarks write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import ticket_section
from tables import markdown

TOP = """\
# Benchmarks
Made by `tools/make_results.py build` from `results/bench_*.csv`. All of it was measured on a 2-core x86-64 machine
with AVX-512 and no GPU; no figure of a GPU is given because none was run. Other work shared the machine, so ratios,
which are taken between neighbours in time, say more than absolute times.
"""

TRAINING = """\
`tools/bench_training.py`: subjects take turns, a block of steps each, in one process; the medians of the ratios of
neighbouring blocks. Rounds are whole rounds of `lottery.play` without their evaluation and checkpoints; the bare loop
is the shortest one that trains the same network on the same batches with the same optimizer (SGD, lr 0.1).
`cpu` is the thread's time on a core, which the limits hold for; `wall` includes waiting for a core.
"""

DATA = """\
`tools/bench_data.py`: JPEGs that it makes, read from the system's cache by one thread without workers; subjects take
turns, a pass over all images each, in several processes after one another, and the medians of the ratios of one turn
are compared. `ours` reads, checks, crops, mirrors and batches uint8 (training normalises on its device); the others
are their usual pipelines; `decoding alone` decodes the same files whole, in full resolution, and does nothing else.
Ours can be faster than that, as it decodes only what a crop shows. [Decoding](data_decoding.md) says what scaled
decoding changes. `cpu` is time on a core, which the limits hold for; `wall` includes waiting for one. Where memory
happens to lie makes some percent: medians of single processes for `ours / ImageFolder` went from 2.43 to 2.58.
"""

PRUNING = """\
`tools/bench_pruning.py`: one global prune, masks included; extra memory is the peak over what was there before the
call, with what it returns.
"""


SHARDED = """\
`tools/bench_sharded_pruning.py`: the same prune by ranks that hold a part each, real processes over gloo, against
sending all weights to one rank. Times are the slowest rank's. `bytes handed over` counts what a rank gives to its
collectives; it stays under `allowed bytes`, a function of the numbers of tensors, ranks and pools and not of weights,
as at most 8 x (12,293 pools + (4 + 2 ranks) tensors). `ring bytes` is what a ring all-reduce of that sends for each
rank, `written bytes` what the system saw the busiest rank send, framing and a barrier included. The modelled time is
that of idle cores: a x weights per rank x ranks per core + b x 17 rounds. Ten billion weights are simulated: one rank's
part of the work was done and measured, no network was used, the sums were made up as if every rank held the same
counts, and b is that of the most ranks measured.
"""


MEMORY = """\
`tools/bench_memory.py`: two rounds of a network of 203 million weights by 2 ranks, and the highest sample of each
rank's anonymous memory by phase; mapped files belong to the system's cache. The mask at work takes one byte a local
weight, 97 MiB here. Limit: beyond the mask no phase passes the peak of training the dense network by more than 64 MiB.
"""

TRACKING = """\
`tools/bench_tracking.py`: the same rounds of LeNet-300-100 on the digits with tracking off, offline, online against an
imitation of W&B's service on loopback, and online against one that hangs, in processes that take turns. `in tracking s`
is what a round waits for in all, from the first call to the end of its log on disk; it does not grow with the time that
a round takes, so `share` of a longer round is less. The first round of a process starts W&B's client; `lth run` plays
many rounds in one process, a Slurm job one. `/ off` are ratios to the same round without tracking, which other work on
the machine disturbs. `summary` is what the run's summary takes at its very end, once; offline it is made by `lth sync`.
"""

GPU = """\
Nothing was run on a GPU. On a node with two or more, `python tools/gpu_matrix.py --devices 2 --precision bf16 --out
results/gpu_matrix.csv` runs every strategy over nccl and compares their tickets. `lth ticket bench` adds rows for dense
and 2:4 weights in fp16 by itself where there is a GPU; 2:4 on sparse tensor cores was not run.
"""


def page(results: Path) -> str:
    """The whole text."""
    sections = [
        _section("Training", TRAINING, results / "bench_training.csv"),
        _section("Reading and decoding images", DATA, results / "bench_data.csv"),
        _section("Pruning", PRUNING, results / "bench_pruning.csv"),
        _section("Pruning over ranks", SHARDED, results / "bench_sharded_pruning.csv"),
        _section("Memory of training in shards", MEMORY, results / "bench_memory.csv"),
        _section("Tracking", TRACKING, results / "bench_tracking.csv"),
    ]
    tickets = ticket_section.section(results)
    return (
        "\n".join([TOP, *(line for section in [*sections, tickets] for line in section), f"## On GPUs\n{GPU}"]) + "\n"
    )


def _section(title: str, text: str, path: Path) -> Iterator[str]:
    """What was measured and how, the table, and the machine where one is named."""
    yield f"## {title}\n{text}"
    yield from _table(path)
    machine = path.with_suffix(".machine.txt")
    if machine.is_file():
        yield f"{machine.read_text().strip()}.\n"


def _table(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield "Not run yet.\n"
        return
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    yield markdown([c.replace("_", " ") for c in rows.columns], rows.values.tolist())

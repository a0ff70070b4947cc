"""One global prune of weights that several processes hold in parts: its time, and what travels between them.

    python tools/bench_sharded_pruning.py --out results/bench_sharded_pruning.csv

Real processes over gloo on this machine, one thread each. Subjects take turns; a time is the slowest rank's, and
medians are compared. `gathered` sends all weights to one rank, selects there with the same code, and sends the bits
back; both must give the same masks. Bytes are counted where they are handed to a collective, and beside that as the
system counts what the process writes (Linux only). Ten billion weights are simulated: one rank does its part of the
work, and the sums are those of equal ranks beside it. Exit status 1 if more is handed over than :func:`numbers` allows,
which does not depend on the number of weights.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from bench_pruning import Subject

from lth_scale import files, world
from lth_scale.config import Prune
from lth_scale.masks import Bits
from lth_scale.pruning import Shard, budgets, masking, next_masks
from lth_scale.pruning.ranks import Counts, Ranks

TENSORS = 20
CONFIG = Prune()
CORES = os.cpu_count() or 1
OURS, GATHERED = "ours", "gathered to one rank"
ROUNDS = 2 + 15  # all-reduces of one pool: see :func:`numbers`


def numbers(tensors: int, ranks: int, pools: int = 1) -> int:
    """int64 numbers that a rank hands to all-reduces in one prune, at most; how many weights there are does not count.

    A pool: three radix selections (two edges from the sample, one among the candidates) of 2048 + 1024 + 1024 counts,
    and 5 totals. A tensor: its size, survivors, NaNs and removals, and if the threshold's ties are to be shared out,
    where each rank's range starts and how many it has.
    """
    return pools * (3 * (2048 + 1024 + 1024) + 5) + tensors * (4 + 2 * ranks)


def sent(handed: float, ranks: int) -> float:
    """Bytes that a ring sends for each rank in all-reduces of so many."""
    return 2 * (ranks - 1) / ranks * handed


def seconds(local: int, ranks: int, cores: int, a: float, b: float) -> float:
    """The model: ``a`` for each local weight, ``b`` for each round; ranks beyond the cores wait for one another."""
    return a * local * max(1.0, ranks / cores) + b * (ROUNDS if ranks > 1 else 0)


@dataclass
class Traffic:
    """What this process handed to collectives."""

    rounds: int = 0
    handed: int = 0

    def add(self, size: int) -> None:
        self.rounds += 1
        self.handed += size


TRAFFIC = Traffic()


class Counted(Ranks):
    """The real exchange, with a count of it."""

    def sum(self, counts: Counts) -> Counts:
        if self.group is not None:
            TRAFFIC.add(8 * counts.size)
        return super().sum(counts)


@dataclass(frozen=True)
class Twins(Ranks):
    """No exchange: as if the other ranks held the same counts as this one."""

    twins: int = 1

    @property
    def size(self) -> int:
        return self.twins

    def sum(self, counts: Counts) -> Counts:
        TRAFFIC.add(8 * counts.size)
        return counts.astype(np.int64) * self.twins

    def gather(self, counts: Counts) -> Counts:
        TRAFFIC.add(8 * self.twins * counts.size)
        return np.stack([counts] * self.twins)


@dataclass
class Row:
    """One subject in one setting; lists have one entry a turn."""

    subject: str
    weights: int
    ranks: int
    local: int
    seconds: list[float]
    cpu: list[float]
    peak: int
    rounds: int
    handed: int
    written: list[int] = field(default_factory=list)


def _shards(total: int, ranks: int, rank: int) -> list[Shard]:
    """This rank's equal part of each tensor: normal weights, of a scale that differs between tensors."""
    generator = torch.Generator().manual_seed(rank)
    size = total // TENSORS // ranks
    return [
        Shard(
            f"layer{index}.weight",
            torch.randn(size, generator=generator).mul_(0.02 * (1 + index % 4)),
            size * rank,
            (size * ranks,),
            None,
            "fc",
        )
        for index in range(TENSORS)
    ]


def _ours(shards: list[Shard]) -> list[Bits]:
    return list(
        next_masks(shards, CONFIG, budgets(shards, CONFIG, 1), dist.group.WORLD if world.size() > 1 else None).values()
    )


def _gathered(shards: list[Shard]) -> list[Bits]:
    """What the field does: all weights to the first rank, the mask from there."""
    wholes = [_to_first(shard.weights) for shard in shards]
    mine = torch.empty(sum(-(-len(shard) // 8) for shard in shards), dtype=torch.uint8)
    cut: list[torch.Tensor] | None = None
    if world.first():
        full = [Shard(s.name, w, 0, s.shape, None, s.kind) for s, w in zip(shards, wholes, strict=True)]
        masks = next_masks(full, CONFIG, budgets(full, CONFIG, 1))
        cut = [_part(masks, shards, rank) for rank in range(world.size())]
        TRAFFIC.add((world.size() - 1) * len(mine))
    dist.scatter(mine, cut)
    ends = np.cumsum([-(-len(shard) // 8) for shard in shards])[:-1]
    return [Bits(piece, 0, len(shard)) for piece, shard in zip(np.split(mine.numpy(), ends), shards, strict=True)]


def _to_first(weights: torch.Tensor) -> torch.Tensor:
    if not world.first():
        TRAFFIC.add(4 * len(weights))
        dist.gather(weights)
        return weights
    whole = torch.empty(world.size(), len(weights))
    dist.gather(weights, list(whole.unbind()))
    return whole.flatten()


def _part(masks: dict[str, Bits], shards: list[Shard], rank: int) -> torch.Tensor:
    parts = [masks[s.name].range(rank * len(s), (rank + 1) * len(s)).packed() for s in shards]
    return torch.from_numpy(np.concatenate(parts))


def _written() -> int:
    """Bytes that this process has written so far; during a prune there is nothing to write to but sockets."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def _wait() -> None:
    if world.size() > 1:
        dist.barrier()


def _turns(name: str, call: Callable[[list[Shard]], list[Bits]], shards: list[Shard], total: int) -> Callable[[], Row]:
    """A function that measures one more turn and gives all of them."""
    subject = Subject(name, partial(call, shards), ready=_wait)
    row = Row(name, total, world.size(), sum(map(len, shards)), subject.seconds, subject.cpu, 0, 0, 0)

    def turn() -> Row:
        TRAFFIC.rounds = TRAFFIC.handed = 0
        before = _written()
        subject.measure()
        row.written.append(_written() - before)
        row.rounds, row.handed, row.peak = TRAFFIC.rounds, TRAFFIC.handed, subject.peak
        return row

    return turn


def _measure(total: int, repeats: int) -> list[Row]:
    """All subjects with so many weights in all; the first call of each only warms up, and is compared."""
    shards = _shards(total, world.size(), world.rank())
    calls = {OURS: _ours} | ({GATHERED: _gathered} if world.size() > 1 else {})
    found = [[bits.packed() for bits in call(shards)] for call in calls.values()]
    assert all(np.array_equal(*pair) for pair in zip(found[0], found[-1], strict=True)), "gathering gave another mask"
    del found
    turns = [_turns(name, call, shards, total) for name, call in calls.items()]
    for _ in range(repeats):
        rows = [turn() for turn in turns]
    return rows


def _latency() -> float:
    """Seconds of one all-reduce as the selection makes them."""
    counts, times = torch.zeros(1024, dtype=torch.int64), []
    for _ in range(300):
        start = time.perf_counter()
        dist.all_reduce(counts)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _slowest(rows: tuple[Row, ...]) -> Row:
    """One row of what each rank measured: its worst in each turn."""
    worst = Row(**asdict(rows[0]))
    worst.seconds = [max(turn) for turn in zip(*(row.seconds for row in rows), strict=True)]
    worst.cpu = [max(turn) for turn in zip(*(row.cpu for row in rows), strict=True)]
    worst.written = [max(turn) for turn in zip(*(row.written for row in rows), strict=True)]
    worst.peak, worst.handed = max(row.peak for row in rows), max(row.handed for row in rows)
    worst.rounds = max(row.rounds for row in rows)
    return worst


def _work(rank: int, ranks: int, weights: list[int], repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    masking.Ranks = Counted
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    latency = _latency() if ranks > 1 else 0.0
    rows = [_slowest(each) for total in weights for each in zip(*world.gathered(_measure(total, repeats)), strict=True)]
    if rank == 0:
        files.write_json(Path(folder) / "rows", [latency, [asdict(row) for row in rows]])
    dist.destroy_process_group()


def _simulate(rank: int, twins: int, total: int, repeats: int, folder: str) -> None:
    """One of ``twins`` ranks by itself."""
    torch.set_num_threads(1)
    masking.Ranks = lambda group, device: Twins(None, device, twins)
    shards = _shards(total, twins, rank)
    turn = _turns(f"ours, simulated: one of {twins} ranks", _ours, shards, total)
    rows = [turn() for _ in range(repeats)]
    rows[-1].ranks = twins
    rows[-1].written = []
    files.write_json(Path(folder) / "rows", [0.0, [asdict(rows[-1])]])


def _spawned(work: Callable[..., None], processes: int, *arguments: Any) -> tuple[float, list[Row]]:
    """What the first of some new processes writes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (*arguments, folder), nprocs=processes)
        latency, rows = files.read_json(Path(folder) / "rows")
        return latency, [Row(**row) for row in rows]


HEADER = (
    "subject,weights,ranks,weights_per_rank,turns,median_seconds,modelled_seconds,median_cpu_seconds,"
    "rounds,bytes_handed_over,allowed_bytes,ring_bytes,written_bytes,peak_extra_bytes"
)


def line(row: Row, a: float, latencies: dict[int, float]) -> str:
    """One row of the table; simulated ranks have a core each, and the latency of the most ranks that were measured."""
    ours, real = row.subject != GATHERED, row.ranks in latencies
    b = latencies[row.ranks if real else max(latencies)]
    modelled = f"{seconds(row.local, row.ranks, CORES if real else row.ranks, a, b):.4f}"
    allowed = 8 * numbers(TENSORS, row.ranks) if row.ranks > 1 else 0
    ring, written = f"{sent(row.handed, row.ranks):.0f}", f"{statistics.median(row.written):.0f}" if row.written else ""
    return (
        f'"{row.subject}",{row.weights},{row.ranks},{row.local},{len(row.seconds)},{statistics.median(row.seconds):.4f},'
        f"{modelled if ours else ''},{statistics.median(row.cpu):.4f},{row.rounds},{row.handed},"
        f"{allowed if ours else ''},{ring if ours else ''},{written},{row.peak}"
    )


def misses(rows: list[Row]) -> list[str]:
    """Rows of ours that handed over more than is allowed, in words."""
    return [
        f"{row.subject}, {row.weights:,} weights on {row.ranks}: {row.handed} bytes in {row.rounds} rounds"
        for row in rows
        if row.subject != GATHERED and (row.handed > 8 * numbers(TENSORS, row.ranks) or row.rounds > ROUNDS)
    ]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="+", default=[25_000_000, 200_000_000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--simulated", type=int, nargs=2, default=[10_000_000_000, 64], metavar=("WEIGHTS", "RANKS"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    assert 1 in options.ranks and max(options.ranks) > 1, "one rank gives the model its a, several its b"
    load, rows, latencies = os.getloadavg()[0], [], {}
    for ranks in options.ranks:
        latencies[ranks], found = _spawned(_work, ranks, ranks, options.weights, options.repeats)
        rows += found
    total, twins = options.simulated
    rows += _spawned(_simulate, 1, twins, total, options.repeats)[1]
    alone = max((row for row in rows if row.ranks == 1), key=lambda row: row.weights)
    a = statistics.median(alone.cpu) / alone.local
    lines = [HEADER, *(line(row, a, latencies) for row in rows)]
    print("\n".join(lines))
    rounds = ", ".join(f"{1e3 * latency:.2f} ms on {ranks}" for ranks, latency in latencies.items() if ranks > 1)
    machine = (
        f"{CORES}-core {platform.machine()}, no GPU, torch {torch.__version__}, gloo, one thread a rank; load average"
        f" {load:.1f} before and, the ranks' own work included, {os.getloadavg()[0]:.1f} after. The model's a is"
        f" {1e9 * a:.2f} ns of a core a weight (one rank, {alone.weights:,} weights); its b, an all-reduce of 8 KiB by"
        f" itself, {rounds}."
    )
    print(machine)
    if options.out:
        files.write_text(options.out, "\n".join(lines) + "\n")
        files.write_text(options.out.with_suffix(".machine.txt"), machine.rstrip(".") + "\n")
    print("\n".join(f"MISSED {miss}" for miss in misses(rows)) or "every limit is kept")
    return bool(misses(rows))


if __name__ == "__main__":
    sys.exit(main())

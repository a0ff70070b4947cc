"""One global prune of many weights: time and extra memory, ours against torch's and against one pass over them.

    python tools/bench_pruning.py --weights 100_000_000 --repeats 7 --out results/bench_pruning.csv

All subjects run in one process, in turn; medians are compared. Extra memory is the peak resident size during a call,
less that before it, what the call returns included (Linux only). CPU seconds, over all threads, show whether other work
disturbed the wall clock. Exit status 1 if a limit is missed; the limits are meant for 100M weights on an idle machine.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.utils import prune

from lth_scale import files
from lth_scale.config import Prune
from lth_scale.pruning import Shard, budgets, next_masks

TENSORS = 20
SLOWER_THAN_A_PASS = 12.0  # at most this many times one pass of abs().sum()
FASTER_THAN_TORCH = 50.0  # at least this many times
MEBIBYTE = 1 << 20
SPARE = 32 * MEBIBYTE  # extra memory beyond the mask, 1 bit a weight
SLOW_REPEATS = 3


@dataclass
class Subject:
    """Something measured: a call, and what came out; ``ready`` comes right before the clock starts."""

    name: str
    call: Callable[[], object]
    limited: bool = False
    repeats: int = 1 << 30
    ready: Callable[[], object] = lambda: None
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    extra: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of wall clock."""
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        """Seconds of all threads together."""
        return statistics.median(self.cpu)

    @property
    def peak(self) -> int:
        """The largest extra memory seen, bytes."""
        return max(self.extra)

    def measure(self) -> None:
        """Run once."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory kept for reuse would hide what the call needs
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        self.ready()
        before, cpu, start = _status("VmRSS"), time.process_time(), time.perf_counter()
        result = self.call()
        self.seconds.append(time.perf_counter() - start)
        self.cpu.append(time.process_time() - cpu)
        self.extra.append(max(0, _status("VmHWM") - before))
        del result


def _status(key: str) -> int:
    """A memory figure of this process, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def _shards(total: int) -> list[Shard]:
    """Normal weights in TENSORS layers of different scale."""
    generator = torch.Generator().manual_seed(0)
    sizes = [total // TENSORS + (index < total % TENSORS) for index in range(TENSORS)]
    scales = [0.02 * (1 + index % 4) for index in range(TENSORS)]
    weights = [torch.randn(size, generator=generator).mul_(scale) for size, scale in zip(sizes, scales, strict=True)]
    return [Shard(f"layer{index}.weight", value, 0, (len(value),), None, "fc") for index, value in enumerate(weights)]


def _masked(shards: list[Shard]) -> list[Shard]:
    """The same weights with half of them removed already."""
    config = Prune(rate=0.5)
    masks = next_masks(shards, config, budgets(shards, config, 1))
    return [Shard(s.name, s.weights, s.offset, s.shape, masks[s.name], s.kind) for s in shards]


def _torch_prune(shards: list[Shard], rate: float) -> list[torch.nn.Module]:
    """torch.nn.utils.prune on modules that share our weights' memory."""
    modules = [torch.nn.Module() for _ in shards]
    for module, shard in zip(modules, shards, strict=True):
        module.weight = torch.nn.Parameter(shard.weights, requires_grad=False)
    prune.global_unstructured([(module, "weight") for module in modules], prune.L1Unstructured, amount=rate)
    return modules


def _pass(weights: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    return torch.abs(weights, out=room[: len(weights)]).sum()


def measure(total: int, repeats: int) -> list[Subject]:
    """All subjects, interleaved."""
    shards, config = _shards(total), Prune()
    masked = _masked(shards)
    halved = budgets(shards, Prune(schedule="list", densities=(0.5, 0.5 * (1 - config.rate))), 2)
    room = torch.empty(-(-total // TENSORS))  # allocating anew for every layer costs up to four times the pass itself
    subjects = [
        Subject("abs().sum() per layer", lambda: [_pass(shard.weights, room) for shard in shards]),
        Subject("next_masks, dense", lambda: next_masks(shards, config, budgets(shards, config, 1)), limited=True),
        Subject("next_masks, density 0.5", lambda: next_masks(masked, config, halved), limited=True),
        Subject("torch global_unstructured", lambda: _torch_prune(shards, config.rate), repeats=SLOW_REPEATS),
    ]
    subjects[0].call(), subjects[1].call()
    for repeat in range(repeats):
        for subject in subjects:
            if repeat < subject.repeats:
                subject.measure()
    return subjects


def misses(subjects: list[Subject], total: int) -> list[str]:
    """The limits that were missed, in words."""
    a_pass, torch_prune, allowed = subjects[0].median, subjects[-1].median, total // 8 + SPARE
    found = []
    for subject in subjects:
        if subject.limited and subject.median > SLOWER_THAN_A_PASS * a_pass:
            found.append(f"{subject.name}: more than {SLOWER_THAN_A_PASS:g} passes of abs().sum()")
        if subject.limited and FASTER_THAN_TORCH * subject.median > torch_prune:
            found.append(f"{subject.name}: less than {FASTER_THAN_TORCH:g} times faster than global_unstructured")
        if subject.limited and subject.peak > allowed:
            found.append(f"{subject.name}: more than {allowed / MEBIBYTE:.0f} MiB of extra memory")
    return found


def table(subjects: list[Subject], total: int, threads: int) -> str:
    """For people."""
    a_pass, torch_prune = subjects[0].median, subjects[-1].median
    lines = [
        f"{total:,} weights in {TENSORS} tensors, {threads} thread{'s' * (threads > 1)}, medians of "
        f"{len(subjects[0].seconds)} ({len(subjects[-1].seconds)} for torch)",
        f"{'':28}{'ms':>10}{'CPU ms':>10}{'/ a pass':>10}{'torch /':>10}{'extra MiB':>12}",
    ]
    for s in subjects:
        ratios = f"{s.median / a_pass:10.1f}{torch_prune / s.median:10.1f}"
        lines.append(f"{s.name:28}{s.median * 1e3:10.1f}{s.median_cpu * 1e3:10.1f}{ratios}{s.peak / MEBIBYTE:12.0f}")
    limits = f"{'<= ' + format(SLOWER_THAN_A_PASS, 'g'):>30}{'>= ' + format(FASTER_THAN_TORCH, 'g'):>10}"
    lines.append(f"{'limit for next_masks':28}{limits}{'<= ' + str((total // 8 + SPARE) // MEBIBYTE):>12}")
    return "\n".join(lines)


def rows(subjects: list[Subject], total: int, threads: int) -> list[str]:
    """For machines."""
    where = f"{total},{TENSORS},{threads},{torch.__version__},{platform.machine()}"
    return [
        f'"{s.name}",{where},{len(s.seconds)},{s.median:.6f},{s.median_cpu:.6f},{s.median / subjects[0].median:.3f},'
        f"{subjects[-1].median / s.median:.3f},{s.peak}"
        for s in subjects
    ]


HEADER = (
    "subject,weights,tensors,threads,torch,machine,repeats,"
    "median_seconds,median_cpu_seconds,passes,times_faster_than_torch,peak_extra_bytes"
)


def main() -> int:
    """Measure, print, write; the number of missed limits decides the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines, missed = [HEADER], []
    for threads in options.threads:
        torch.set_num_threads(threads)
        subjects = measure(options.weights, options.repeats)
        print(table(subjects, options.weights, threads), end="\n\n", flush=True)
        lines += rows(subjects, options.weights, threads)
        missed += [f"{miss} ({threads} threads)" for miss in misses(subjects, options.weights)]
    if options.out:
        files.write_text(options.out, "\n".join(lines) + "\n")
    print("\n".join(f"MISSED {miss}" for miss in missed) or "every limit is kept")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())

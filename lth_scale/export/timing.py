"""Times of several programs on one machine, interleaved, so that whatever else it does falls on all of them alike."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

TURN = 10  # timed calls of one program before another's turn, so that its weights are in the caches, as in use
FEWEST = 20  # calls of each, however slow


@dataclass
class Timed:
    """Args: seconds: of each call; joules: of all of them together, None where nobody tells."""

    seconds: list[float] = field(default_factory=list)
    joules: float | None = None


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[list[int]]:
    """Keep this thread, and those that it starts, on so many cores, and torch to so many threads; the cores' numbers.

    Nothing collects garbage meanwhile. Where the system pins nothing there are no numbers.
    """
    before, collects = torch.get_num_threads(), gc.isenabled()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    chosen = sorted(allowed)[-threads:]  # the first often serves interrupts
    try:
        if chosen:
            os.sched_setaffinity(0, chosen)
        torch.set_num_threads(threads)
        gc.disable()
        yield chosen
    finally:
        if collects:
            gc.enable()
        torch.set_num_threads(before)
        if allowed:
            os.sched_setaffinity(0, allowed)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    seconds: float,
    joules: Callable[[], float] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timed]:
    """Time programs in turns, in a new random order each time round.

    A turn is one call that is not counted, and TURN that are. All programs are called equally often.

    Args:
        calls: name -> program.
        repeats: calls of each that are timed.
        seconds: what the slowest may take in all; it makes calls fewer, down to FEWEST.
        joules: used so far, by the whole machine.
        clock: seconds so far.
    """
    slowest = max((_warm(call, clock) for call in calls.values()), default=0.0)
    count = max(min(FEWEST, repeats), min(repeats, int(seconds / slowest) if slowest > 0 else repeats))
    found = {name: Timed(joules=0.0 if joules else None) for name in calls}
    order, draw = list(calls), random.Random(0)
    while order and len(found[order[0]].seconds) < count:
        draw.shuffle(order)
        turn = min(TURN, count - len(found[order[0]].seconds))
        for name in order:
            _turn(calls[name], turn, found[name], joules, clock)
    return found


def _warm(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of a turn's calls, or of those that fit in a second."""
    begin, fastest = clock(), float("inf")
    for _ in range(TURN):
        start = clock()
        call()
        fastest = min(fastest, clock() - start)
        if clock() - begin > 1:
            break
    return fastest


def _turn(
    call: Callable[[], object],
    count: int,
    into: Timed,
    joules: Callable[[], float] | None,
    clock: Callable[[], float],
) -> None:
    call()
    before = joules() if joules else 0.0
    for _ in range(count):
        start = clock()
        call()
        into.seconds.append(clock() - start)
    if joules and into.joules is not None:
        into.joules += joules() - before

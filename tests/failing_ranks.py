"""``lth run`` on several devices, as forks of this process, which has everything imported; and faults that ranks meet.

Launcher, ranks, their environment and the command line are the real ones; only no Python is started anew.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

from launches import Forked, leave, notes, started
from many_ranks import import_everything
from proofs import children, gone, kill

from lth_scale import cli, lottery, ranks, report  # noqa: F401  # imported before any fork
from lth_scale.checkpoint import keeping
from lth_scale.training import callbacks
from lth_scale.training.module import Classifier

NOTES = "LTH_TEST_NOTES"
"""In the environment of ranks: the folder where they note things for the test."""

Act = Callable[[], object]
Fault = Callable[[int], None]
"""Called in every rank, with its number, before it begins: installs what is to go wrong."""


# --- launching --------------------------------------------------------------------------------------------------------


def lth(fault: Fault, number: int, words: Sequence[str]) -> int:
    """A rank of ``lth``."""
    cli._conclude = lambda experiment: None  # takes seconds
    fault(number)
    return cli.main(words[3:])  # what stands behind python -m lth_scale


class Run:
    """``lth run WORDS --out ROOT`` on two devices, under way.

    Args:
        fault: what its ranks will meet.
    """

    def __init__(self, words: Sequence[str], root: Path, fault: Fault = lambda rank: None) -> None:
        self.root, self._notes = root, root.with_name(f"{root.name}.notes")
        shutil.rmtree(self._notes, ignore_errors=True)
        self._notes.mkdir()

        def counted(rank: int) -> None:
            count_steps(self._notes / f"steps.{rank}")
            fault(rank)

        def work() -> None:
            for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))]:
                del os.environ[name]
            os.environ[NOTES] = str(self._notes)
            sys.stdout = sys.stderr = (self._notes / "told").open("w", buffering=1)
            ranks._started = partial(started, partial(lth, counted))
            leave(cli.main(["run", *words, "--hardware.devices=2", "--out", str(root)]))

        import_everything()
        self._begun = time.time()
        self.launcher = Forked(work)

    def reached(self, what: str = "pid", count: int = 2) -> list[int]:
        """Wait until so many ranks have noted something; what, in order of rank."""
        while len(found := notes(self._notes, what)) < count:
            assert self.launcher.poll() is None, self.told
            time.sleep(0.01)
        return found

    def wait(self, limit: float = 120) -> int:
        """The launcher's exit code. No process of its is left."""
        pids: set[int] = set()
        while self.launcher.poll() is None and time.time() < self._begun + limit:
            pids |= set(children(self.launcher.pid))
            time.sleep(0.02)
        self._ended, code = time.time(), self.launcher.poll()
        left = [pid for pid in {self.launcher.pid, *pids} if not gone(pid)]
        for pid in left:
            kill(pid)
        assert code is not None and not left, f"after {limit} s: {self.told}"
        return code

    @property
    def lasted(self) -> float:
        """Seconds from the fault to the end of all."""
        return self._ended - next(self._notes.glob("met.*")).stat().st_mtime

    @property
    def told(self) -> str:
        """What launcher and ranks have said."""
        return (self._notes / "told").read_text()

    @property
    def steps(self) -> int:
        """Training steps that the first rank has begun."""
        path = self._notes / "steps.0"
        return path.stat().st_size if path.exists() else 0


def count_steps(path: Path) -> None:
    """A byte for each."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    before_steps(lambda: os.write(handle, b"."))


# --- faults -----------------------------------------------------------------------------------------------------------


def note(name: str) -> None:
    """Leave this rank's pid under a name, whole or not at all."""
    path = Path(os.environ[NOTES], f"{name}.{os.environ['RANK']}")
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(str(os.getpid()))
    temporary.replace(path)


def die() -> None:
    note("met")
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    note("met")
    os.kill(os.getpid(), signal.SIGSTOP)


def die_within(seconds: float) -> None:
    """While whatever follows goes on."""
    Timer(seconds, die).start()


def before_steps(act: Act) -> None:
    real = Classifier.training_step

    def step(self: Classifier, batch: Any, index: int) -> Any:
        act()
        return real(self, batch, index)

    Classifier.training_step = step  # type: ignore[method-assign]


def once(count: int, act: Act) -> Act:
    """Something that is done at the ``count``-th call."""
    calls = [0]

    def call() -> None:
        calls[0] += 1
        if calls[0] == count:
            act()

    return call


def at_step(rank: int, count: int, act: Act) -> Fault:
    """In the ``count``-th training step of a rank, over all rounds."""
    return lambda number: before_steps(once(count, act)) if number == rank else None


def in_file(rank: int, name: str, count: int, act: Act) -> Fault:
    """When half of a rank's file in the ``count``-th checkpoint is written, over all rounds."""

    def install(number: int) -> None:
        real, written = os.write, set()

        def write(handle: int, data: Any) -> int:
            path = os.readlink(f"/proc/self/fd/{handle}")
            if path.endswith(f"/{name}") and "/checkpoint/" in path:
                written.add(path)
                if len(written) == count:
                    real(handle, memoryview(data)[: len(data) // 2])
                    act()
            return real(handle, data)

        os.write = write

    return lambda number: install(number) if number == rank else None


def before_removal(count: int, act: Act) -> Fault:
    """When the ``count``-th checkpoint is published, and the one before it is still there."""

    def install(number: int) -> None:
        real, now = keeping.remove_older, once(count, act)

        def remove(path: Path, guard: Act) -> None:
            now()
            real(path, guard)

        keeping.remove_older = remove

    return lambda number: install(number) if number == 0 else None


def slow_from(count: int, seconds: float) -> Fault:
    """From its ``count``-th step on each rank takes its time, so that signals meet it there; it notes its pid."""

    def install(number: int) -> None:
        now, calls = once(count, lambda: note("pid")), itertools.count(1)

        def pause() -> None:
            now()
            if next(calls) >= count:
                time.sleep(seconds)

        before_steps(pause)

    return install


def without_statistics(number: int) -> None:
    """Running statistics are each rank's own."""
    callbacks.Statistics.on_step = lambda *_: None  # type: ignore[method-assign]


def both(*faults: Fault) -> Fault:
    def install(number: int) -> None:
        for fault in faults:
            fault(number)

    return install

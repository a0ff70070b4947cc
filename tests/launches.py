"""Ranks that this process starts as ``lth run`` does, running a program of ``rank_programs``, to be meddled with.

They are forks of this process, which has everything imported; launcher and environment are the real ones.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import pytest
import rank_programs
from many_ranks import import_everything
from proofs import fork

from lth_scale import ranks

PROGRAMS = str(Path(__file__).with_name("rank_programs.py"))
Main = Callable[[int, Sequence[str]], int]
"""What a rank does, given its number and the words behind the command; its exit code."""


class Forked:
    """A fork that can be watched as a subprocess can."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.pid = fork(work)
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, limit: float = 100) -> int:
        deadline = time.monotonic() + limit
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def begin(environment: dict[str, str]) -> None:
    """In a fork: what a new program has."""
    os.setsid()
    os.environ.update(environment)
    for number in ranks.FORWARDED:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def started(main: Main, words: Sequence[str], number: int, shared: dict[str, str], folder: Path) -> ranks.Rank:
    """In place of the launcher's own: a rank."""
    last = folder / str(number)

    def work() -> None:
        begin(shared | {"RANK": str(number), "LOCAL_RANK": str(number), ranks.LAST_WORDS: str(last)})
        leave(main(number, words))

    process: Any = Forked(work)
    return ranks.Rank(number, process, last)


def notes(folder: Path, name: str) -> list[int]:
    """What the ranks noted under a name, in order of rank."""
    return [int(path.read_text()) for path in sorted(folder.glob(f"{name}.[0-9]"))]


def when_running(folder: Path, count: int, act: Callable[[list[int]], None]) -> None:
    """In a thread: something done to ``count`` ranks, given their pids, a few steps after all have begun."""

    def wait() -> None:
        while len(notes(folder, "pid")) < count:
            time.sleep(0.02)
        act(notes(folder, "pid"))

    Thread(target=wait, daemon=True).start()


class Launch:
    """Runs a program as ranks: (exit code, what was said on stderr)."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.folder, self.capfd, self.patch = folder, capfd, patch

    def __call__(
        self, *words: str, devices: int = 2, timeout: int = 60, act: Callable[[list[int]], None] | None = None
    ) -> tuple[int, str]:
        name, *others = words
        self.patch.setenv("TIMEOUT", str(timeout))
        if act:
            when_running(self.folder, devices, act)
        code = ranks.launch([sys.executable, PROGRAMS, name, str(self.folder), *others], devices, 1)
        return code, self.capfd.readouterr().err


@pytest.fixture
def launch(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Launch:
    """With a launcher that soon has enough of a rank that hangs."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))]:
        monkeypatch.delenv(name)
    import_everything()
    monkeypatch.setattr(ranks, "PATIENCE", 2.0)
    monkeypatch.setattr(ranks, "_started", partial(started, lambda number, words: rank_programs.run(*words[2:])))
    return Launch(tmp_path, capfd, monkeypatch)

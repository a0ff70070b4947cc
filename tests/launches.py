"""Ranks that this process starts as ``lth run`` does, running a program of ``rank_programs``, to be meddled with."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from lth_scale import ranks

PROGRAMS = str(Path(__file__).with_name("rank_programs.py"))


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
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_"))]:
        monkeypatch.delenv(name)
    return Launch(tmp_path, capfd, monkeypatch)

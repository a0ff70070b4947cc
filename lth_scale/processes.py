"""Programs in processes of their own: started, heard to their last line, ended with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def program(module: str) -> list[str]:
    """The command of a module of this package that can be run."""
    return [sys.executable, "-m", f"lth_scale.{module}"]


def heard(words: Sequence[str], limit: float | None = None, **variables: str) -> tuple[int, str]:
    """Run a command to its end, without input: its exit code, and its last line on either stream.

    A process that fails in silence is given a line.

    Args:
        words: the command.
        limit: seconds that it may take; None: as long as it does.
        variables: more of its environment.

    Raises subprocess.TimeoutExpired at the limit; then, as whenever nobody listens any more, it is ended.
    """
    environment, pipe = {**os.environ, **variables}, subprocess.PIPE
    with subprocess.Popen(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate(timeout=limit)
        except BaseException:
            end(process)
            raise
    lines = [line for line in said.splitlines() if line.strip()]
    silent = f"it ended with exit code {process.returncode}" if process.returncode else ""
    return process.returncode, " ".join(lines[-1].split()) if lines else silent


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process, and first its children, which may live in sessions of their own and would go on."""
    end_children(process.pid)
    process.kill()
    process.wait()


def end_children(pid: int | str) -> None:
    """Kill the children of a process; ``self`` for those of this one."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)

"""Helper processes: what they said last, and that none outlives whoever listens."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from proofs import gone, kill

from lth_scale.processes import end, heard, program


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("echo one; echo two >&2; echo", 0, "two"),
        ("echo one >&2; echo 'two   words'; exit 3", 3, "two words"),
        ("echo $TOLD", 0, "something"),
        ("cat", 0, ""),
        ("exit 4", 4, "it ended with exit code 4"),
    ],
)
def test_the_last_line_is_heard(script: str, code: int, said: str) -> None:
    """On either stream; there is nothing to read, and silence is told where it is a failure."""
    assert heard(shell(script), TOLD="something") == (code, said)


def test_a_module_of_the_package_is_a_program() -> None:
    assert heard([*program("words"), "nothing"]) == (0, "")
    assert heard(program("nowhere"))[1].endswith("No module named lth_scale.nowhere")


def limited(words: list[str]) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        heard(words, 1.0)


def ended(words: list[str], by: Callable[[subprocess.Popen[Any]], None]) -> None:
    process = subprocess.Popen(words)
    time.sleep(1.0)
    by(process)
    process.wait()


@pytest.mark.parametrize(
    ("finish", "whole"),
    [
        (limited, True),
        (lambda words: ended(words, end), True),
        (lambda words: ended(words, subprocess.Popen.kill), False),  # the control
    ],
    ids=["limit", "end", "control"],
)
def test_a_process_ends_with_what_it_has_started(
    finish: Callable[[list[str]], None], whole: bool, tmp_path: Path
) -> None:
    """Also with what lives in a session of its own, as the service of W&B's client does."""
    note = tmp_path / "pid"
    finish(shell(f"setsid sleep 60 & echo $! > {note}; wait"))
    child, deadline = int(note.read_text()), time.monotonic() + 5
    while whole and not gone(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gone(child) == whole
    if not whole:
        kill(child)

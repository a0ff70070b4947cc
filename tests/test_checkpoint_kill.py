"""A rank that is killed while it writes leaves the checkpoint before the latest; those that survive publish nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from proofs import DONE
from states import even, parts, same, spawned, state

from lth_scale import checkpoint, files

pytestmark = pytest.mark.kill


def die_at(place: str) -> None:
    """In a forked child: the process is killed half way through a call."""
    real = {"write": os.write, "fsync": os.fsync, "replace": os.replace}[place]

    def call(*args: Any) -> None:
        if place == "write":
            real(args[0], args[1][: len(args[1]) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, place, call)


def attempt(folder: Path, group: Path, victim: int | None, place: str) -> list[int]:
    """Two ranks that publish a second checkpoint, of which one dies."""

    def work(rank: int) -> None:
        made = state(2, step=2)
        if rank == victim:
            die_at(place)
        checkpoint.publish(folder, parts(made, rank, even(made, 2)), 2, 2, {})

    return spawned(2, group, work)


@pytest.mark.parametrize(
    ("victim", "place"), [(0, "write"), (1, "write"), (0, "fsync"), (1, "fsync"), (0, "replace")], ids=str
)
def test_a_killed_rank_leaves_the_checkpoint_before(victim: int, place: str, tmp_path: Path) -> None:
    folder, before = tmp_path / "checkpoint", "step_00000001.attempt_1"
    checkpoint.save_state(folder / before, state(1, step=1))
    codes = attempt(folder, tmp_path / "group", victim, place)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (DONE, -signal.SIGKILL)
    left = [path.name for path in folder.iterdir() if path.name != before]
    assert all(name.startswith(".step_00000002.attempt_2.") and name.endswith(".tmp") for name in left)
    assert bool(left) == (victim == 0)  # the first rank clears up
    found = checkpoint.latest(folder)
    assert found is not None and found[0].name == before and same(found[1], state(1))
    files.remove_temporaries(folder)
    assert attempt(folder, tmp_path / "again", None, place) == [DONE, DONE]  # the control, and the way on
    assert [path.name for path in folder.iterdir()] == ["step_00000002.attempt_2"]
    assert same(checkpoint.load_state(folder / "step_00000002.attempt_2"), state(2))

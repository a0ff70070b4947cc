"""Real processes write one state together, read it together, and fail together."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from commands import flip
from proofs import DONE, USER
from states import even, parts, same, spawned, state

from lth_scale import checkpoint, files, world
from lth_scale.checkpoint import MANIFEST
from lth_scale.errors import UserError

pytestmark = pytest.mark.distributed


def publish(folder: Path, seed: int, step: int, attempt: int = 1) -> Path:
    """Collective: each rank gives its own parts; what else they give differs, and the first rank's counts."""
    made = state(seed, step)
    mine = parts(made, world.rank(), even(made, world.size()))
    return checkpoint.publish(folder, mine, step, attempt, {"rank": world.rank()})


@pytest.mark.parametrize("size", [2, 4])
def test_what_ranks_write_together(size: int, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "checkpoint"

    def work(rank: int) -> None:
        assert checkpoint.latest(folder) is None and not checkpoint.sound(folder / "step_00000003.attempt_1")
        first = publish(folder, 0, 3)
        assert publish(folder, 1, 4) == folder / "step_00000004.attempt_1" and not first.exists()
        found = checkpoint.latest(folder)
        assert found is not None and found[1].step == 4 and same(found[1], state(1)) and checkpoint.sound(found[0])
        assert found[1].digest() == state(1).digest() and found[1].extra == {"rank": 0}
        shares = world.gathered(found[1].share("weights/fc.weight", rank, size))
        assert shares == [(30 * r // size, 30 * (r + 1) // size) for r in range(size)]

    assert spawned(size, tmp_path / "group", work) == [DONE] * size
    assert [path.name for path in folder.iterdir()] == ["step_00000004.attempt_1"]
    last = folder / "step_00000004.attempt_1"
    assert sorted(path.name for path in last.iterdir()) == [
        MANIFEST,
        *(f"rank_{rank:05d}.safetensors" for rank in range(size)),
    ]
    assert json.loads((last / MANIFEST).read_text())["world_size"] == size
    assert same(checkpoint.load_state(last), state(1))  # and one process reads it


def test_each_rank_checks_its_share_and_all_agree(tmp_path: Path) -> None:
    """Also where only one rank sees the damage; and another number of ranks reads what one wrote."""
    older, newer = (tmp_path / f"step_0000000{step}.attempt_1" for step in (1, 2))
    for path in (older, newer):
        made = state(int(path.name[12]), int(path.name[12]))
        spawned(
            2,
            tmp_path / f"group{path.name}",
            lambda rank, made=made, path=path: checkpoint.save(path, parts(made, rank, even(made, 2)), made.step),
        )
    flip(newer / "rank_00001.safetensors")

    def work(rank: int) -> None:
        seen: list[str] = []
        real = files.sha256_file
        files.sha256_file = lambda path: (seen.append(path.name), real(path))[1]
        found = checkpoint.latest(tmp_path)
        assert found is not None and found[0] == older and same(found[1], state(1))
        assert not checkpoint.sound(newer)
        with pytest.raises(UserError, match=r"step_00000002.attempt_1/rank_00001.safetensors is damaged"):
            checkpoint.opened(newer)
        expected = {0: "rank_00000.safetensors", 1: "rank_00001.safetensors"}.get(rank)
        assert set(seen) == ({expected} if expected else set())

    assert spawned(3, tmp_path / "group", work) == [DONE] * 3


def refuse_after(room: int) -> None:
    """In a forked child: a disk that is full after so many bytes."""
    left, real = [room], os.write

    def write(handle: int, content: Any) -> int:
        left[0] -= len(content)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(handle, content)

    os.write = write


@pytest.mark.parametrize("full", [0, 1], ids=["the first rank's", "the other's"])
def test_a_full_disk_of_one_rank_fails_all_and_leaves_what_was(full: int, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"

    def work(rank: int) -> None:
        publish(folder, 0, 1)
        real = os.write
        if rank == full:
            refuse_after(100)
        with pytest.raises(
            UserError, match=r"cannot write .*step_00000002.attempt_1: No space left on device; nothing"
        ):
            publish(folder, 1, 2)
        os.write = real
        found = checkpoint.latest(folder)
        assert found is not None and found[1].step == 1
        world.wait()
        assert [path.name for path in folder.iterdir()] == ["step_00000001.attempt_1"]
        world.wait()
        publish(folder, 1, 2)  # room was made

    assert spawned(2, tmp_path / "group", work) == [DONE] * 2
    assert [path.name for path in folder.iterdir()] == ["step_00000002.attempt_1"]
    assert same(checkpoint.load_state(folder / "step_00000002.attempt_1"), state(1))


def test_ranges_that_are_no_whole_fail_all(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        made = state()
        with pytest.raises(UserError if rank else RuntimeError, match=r"ranges of .* overlap at 0"):
            checkpoint.save(tmp_path / "s", parts(made, 0, {key: [] for key in made.flat()}), 0)
        assert not (tmp_path / "s").exists()

    assert spawned(2, tmp_path / "group", work) == [DONE] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["group"]


def test_a_process_of_several_saves_alone(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            checkpoint.save_state(tmp_path / "s", state(), {"a": 1})
            assert same(checkpoint.load_state(tmp_path / "s"), state())

    assert spawned(2, tmp_path / "group", work) == [DONE] * 2
    assert checkpoint.load_manifest(tmp_path / "s")["world_size"] == 1


def test_processes_that_fail_are_seen(tmp_path: Path) -> None:
    """The control for what the others are told by."""

    def work(rank: int) -> None:
        if rank:
            raise UserError("no")

    assert spawned(2, tmp_path / "group", work) == [DONE, USER]

"""Processes die at any moment, disks fill up at any write; the same command then ends in the same bits."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from proofs import CRASH, DONE, USER, assert_same, ended, fork, forks, gone, kill, leftovers, proof, state
from tiny_runs import play, tiny

from lth_scale import files, lottery, settings
from lth_scale.config import Config
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths

pytestmark = pytest.mark.kill

SMALL = tiny(
    train={"duration": "3it", "batch_size": 100, "eval_every": "3it", "checkpoint_every": "2it", "lr": 0.05},
    rewind={"at": "1it"},
    prune={"rounds": 1},
)


def whole_run(config: Config, root: Path) -> None:
    """What ``lth run`` does, in this process."""
    run = Experiment.at(config, root).established()
    lottery.run(run, run.tasks)


# --- every write, fsync, move and removal of a two-round run, one after the other -------------------------------------

CHANGES = ("write", "replace", "rename", "link", "rmdir", "truncate")
CALLS = ("fsync", *CHANGES)
MOVES = ("replace", "rename", "link")  # their target is their second argument
REFUSABLE = ("write", "fsync", "replace", "rename", "link")  # a full disk still deletes


class Numbered:
    """Counts what a process asks the system to change below a folder, and interferes with the n-th such call.

    Args:
        root: the folder.
        interfere: given the name of the n-th call, the real one, and its arguments, instead of which it is called.
        at: n, from 0; None only counts.
    """

    def __init__(self, root: Path, interfere: Callable[..., Any] | None = None, at: int | None = None) -> None:
        self._root, self._interfere, self._at = os.path.realpath(root), interfere, at
        self.seen: list[tuple[str, str]] = []
        """Each call's name, and the kind of file: its path without numbers."""

    def install(self) -> None:
        """In a forked child, for the rest of its life."""
        for name in CALLS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            path = self._path(args[name in MOVES], more)
            if not path.startswith(self._root):
                return real(*args, **more)
            number = len(self.seen)
            self.seen.append((name, re.sub(r"\.[0-9a-f]{8}\.|\d+", "#", path.removeprefix(self._root))))
            if number == self._at and self._interfere is not None:
                return self._interfere(name, real, *args)
            return None if name == "fsync" else real(*args, **more)  # a killed process loses nothing it wrote

        return call

    def _path(self, target: Any, more: dict[str, Any]) -> str:
        base = more.get("dir_fd")
        if isinstance(target, int):
            return os.readlink(f"/proc/self/fd/{target}")
        if base is not None:
            return os.path.join(os.readlink(f"/proc/self/fd/{base}"), os.fspath(target))
        return os.path.abspath(os.fspath(target))


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def tear(name: str, real: Callable[..., Any], handle: int, data: memoryview) -> None:
    real(handle, data[: len(data) // 2])
    die()


def run_numbered(root: Path, interfere: Callable[..., Any] | None = None, at: int | None = None) -> int:
    """The exit code of a run with something wrong at its n-th call, or with nothing wrong."""

    def work() -> None:
        Numbered(root, interfere, at).install()
        whole_run(SMALL, root)

    return ended(fork(work))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return proof(play(SMALL, tmp_path_factory.mktemp("reference")).paths.root)


@pytest.fixture(scope="module")
def calls(reference: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """All calls of an undisturbed run, in order: their names and the kinds of their files."""
    folder = tmp_path_factory.mktemp("counted")

    def work() -> None:
        numbered = Numbered(folder / "run")
        numbered.install()
        whole_run(SMALL, folder / "run")
        (folder / "calls.json").write_text(json.dumps(numbered.seen))

    assert ended(fork(work)) == DONE
    assert_same(folder / "run", reference, "in a forked process")
    return [(name, kind) for name, kind in json.loads((folder / "calls.json").read_text())]


@pytest.mark.parametrize(
    ("interfere", "names", "code", "every"),
    [(die, CHANGES, -9, True), (refuse, REFUSABLE, USER, False), (tear, ("write",), -9, True)],
    ids=["killed before", "refused for want of space", "killed half way through"],
)
@pytest.mark.timeout(900)
def test_every_crash_point(
    interfere: Callable[..., Any],
    names: tuple[str, ...],
    code: int,
    every: bool,
    calls: list[tuple[str, str]],
    reference: dict[str, Any],
    tmp_path: Path,
) -> None:
    """A process killed before an fsync leaves what one killed before the next call leaves, so that has none of its own.

    Of calls that are refused the first of each kind, on each kind of file, stands for the others: all that matters is
    who asked.
    """
    points = [(number, call[0]) for number, call in enumerate(calls) if call[0] in names]
    if not every:
        points = [(number, name) for number, name in points if calls.index(calls[number]) == number]
    assert len(points) > 20

    def met(half: int) -> None:
        for number, name in points[half::2]:
            root, what = tmp_path / f"at_{number}", f"call {number} of {len(calls)} ({name})"
            assert run_numbered(root, interfere, number) == code, what
            assert run_numbered(root) == DONE, what
            assert_same(root, reference, what)
            assert leftovers(root) == [], what
            shutil.rmtree(root)

    assert forks(2, met, limit=800) == [DONE, DONE]  # a core each


def test_without_atomic_writes_a_crash_point_is_fatal(tmp_path: Path) -> None:
    """The enumeration above can fail: files written in place are found half written."""

    def in_place(path: Path, content: bytes, move: object) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(handle, content)
        os.close(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_place", in_place)
        assert run_numbered(tmp_path / "run", tear, 0) == -9
    assert run_numbered(tmp_path / "run") == USER


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_numbered(tmp_path / "run", refuse, 60) == USER
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and str(tmp_path / "run") in told
    assert "No space left on device; nothing was lost, make room and run the same command again" in told


# --- real kills at random moments -------------------------------------------------------------------------------------

LONGER = tiny(
    train={"duration": "60it", "batch_size": 100, "eval_every": "5it", "checkpoint_every": "10it", "lr": 0.05},
    rewind={"at": "15it"},
    prune={"rounds": 2},
    run={"seeds": (0,), "arms": ("ticket", "random")},
)


def test_a_process_killed_at_random_moments(tmp_path: Path) -> None:
    begun = time.perf_counter()
    reference = proof(play(LONGER, tmp_path / "reference").paths.root)
    length, moments = time.perf_counter() - begun, random.Random(0)
    root, killed = tmp_path / "run", 0
    for _ in range(12):
        pid = fork(partial(whole_run, LONGER, root))
        time.sleep(moments.uniform(0.05, 0.4) * length)
        kill(pid)
        died = ended(pid) == -signal.SIGKILL
        killed, length = killed + died, length if died else length / 2  # the reference may have met a busy machine
        if killed % 6 == 0 or not died:
            root = (
                tmp_path / f"run_{killed}_{length}"
            )  # begin a new one now and then, so that early moments are met too
    assert killed > 4
    for folder in {tmp_path / "run", root}:
        assert ended(fork(partial(whole_run, LONGER, folder))) == DONE
        assert_same(folder, reference, str(folder.name))
        assert leftovers(folder) == []


# --- the command itself: a launcher and its workers -------------------------------------------------------------------


class Command:
    """``lth run CONFIG --jobs 2 --out ROOT`` as a process of its own."""

    def __init__(self, config: Config, root: Path) -> None:
        self.root = root
        path = root.with_suffix(".yaml")
        path.write_text(settings.dump(config))
        words = [sys.executable, "-m", "lth_scale", "run", str(path), "--jobs", "2", "--out", str(root)]
        self._log = root.with_suffix(".log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, cwd=root.parent)

    def claims(self) -> dict[int, Path]:
        """Processes that hold a claim now, and the claim."""
        found = [(path, path.read_text()) for path in self.root.glob("seed_*/*/round_*/claims/0*")]
        return {pid: path for path, text in found if text and not gone(pid := json.loads(text)["pid"])}

    def workers(self) -> set[int]:
        """The processes alone."""
        return set(self.claims())

    def wait_for_work(self, rounds: int = 0) -> None:
        """Until a round is being worked on, and so many are done."""
        while not self.workers() or len(RunPaths(self.root).results()) < rounds:
            assert self.process.poll() is None, self.told()
            time.sleep(0.02)

    def stop_at_work(self, rounds: int) -> int:
        """Freeze a worker in the middle of a round, when so many rounds are done; its pid."""
        while True:
            self.wait_for_work(rounds)
            for pid, claim in self.claims().items():
                os.kill(pid, signal.SIGSTOP)
                while state(pid) != "T":
                    time.sleep(0.001)
                if claim.read_text() and not (claim.parents[1] / "result.json").exists():
                    return pid
                os.kill(pid, signal.SIGCONT)  # it came to the end of its round just then

    def told(self) -> str:
        return self._log.read_text()

    def finish(self) -> int:
        return self.process.wait(timeout=200)


COMMANDED = tiny(
    train={"duration": "200it", "batch_size": 100, "eval_every": "10it", "checkpoint_every": "20it", "lr": 0.05},
    rewind={"at": "15it"},
    prune={"rounds": 2},
    run={"seeds": (0, 1), "arms": ("ticket", "random")},
)


@pytest.fixture(scope="module")
def commanded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return proof(play(COMMANDED, tmp_path_factory.mktemp("commanded")).paths.root)


@contextlib.contextmanager
def _cleared(command: Command) -> Iterator[Command]:
    """No process of a failed test stays behind."""
    try:
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            command.process.kill()
        command.process.wait()


def rounds(reference: dict[str, Any]) -> set[str]:
    """The folders of the rounds that a proof speaks of."""
    return {name for name, value in reference.items() if isinstance(value, dict)}


def test_the_launcher_is_killed_and_takes_its_workers_along(commanded: dict[str, Any], tmp_path: Path) -> None:
    moments, root = random.Random(1), tmp_path / "run"
    for number in range(3):
        with _cleared(Command(COMMANDED, root)) as command:
            if number:  # the first one dies while it starts
                command.wait_for_work()
            time.sleep(moments.uniform(0.0, 1.0))
            workers = command.workers()
            command.process.kill()
            command.finish()
            while not all(map(gone, workers)):
                time.sleep(0.02)  # the test's own limit ends this if they live on
    with _cleared(Command(COMMANDED, root)) as command:
        assert command.finish() == DONE, command.told()
    assert_same(root, commanded)
    assert leftovers(root) == []


def test_a_worker_is_killed_and_the_others_finish(commanded: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "run"
    with _cleared(Command(COMMANDED, root)) as command:
        kill(command.stop_at_work(rounds=2))
        assert command.finish() == CRASH, command.told()
        told = command.told()
    assert "failed: its process died (exit code -9)" in told and "Traceback" not in told
    done = {str(path.parent.relative_to(root)) for path in RunPaths(root).results()}
    expected = rounds(commanded)
    assert expected - done, "something must be missing"
    seeds = {name.partition("/")[0] for name in expected - done}
    assert len(seeds) == 1, f"only what needs the killed round may be missing: {expected - done}"
    play(COMMANDED, root)
    assert_same(root, commanded)


def test_a_job_that_fails_leaves_the_others_alone(commanded: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "run"
    play(COMMANDED, root, lambda task: task.round == 0)
    mask = RunPaths(root).round(0, "ticket", 1).mask
    sound = mask.read_bytes()
    mask.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with _cleared(Command(COMMANDED, root)) as command:
        assert command.finish() == USER, command.told()
        told = command.told()
    assert f"{mask} is damaged" in told and "Traceback" not in told
    assert "arm=random round=2 failed: needs seed=0 arm=ticket round=1, which failed" in told
    done = {str(path.parent.relative_to(root)) for path in RunPaths(root).results()}
    assert done == {"seed_0/ticket/round_00"} | {name for name in rounds(commanded) if name.startswith("seed_1")}
    mask.unlink()  # as the message says
    play(COMMANDED, root)
    assert_same(root, commanded)

"""Several processes in one run folder: claims, one folder made by many, reading while others write."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import MADE, Lth, assert_told
from commands import again as again
from commands import half as half
from commands import lth as lth
from commands import whole as whole
from failing_ranks import before_steps
from proofs import DONE, USER, assert_same, ended, fork, kill, proof
from tiny_runs import play, tiny

from lth_scale import claims, data, files, lottery, report, settings, status
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.files import read_json
from lth_scale.paths import RunPaths

# --- several processes ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def holding(folder: Path, job: str) -> Iterator[int]:
    """A live process that works on a round; its pid."""
    ready, told = os.pipe()

    def hold() -> None:
        with claims.claimed(folder, job, only=True):
            os.write(told, b"x")
            os.read(os.pipe()[0], 1)

    pid = fork(hold)
    os.read(ready, 1)
    try:
        yield pid
    finally:
        kill(pid)
        ended(pid)


def test_the_second_process_on_a_task_is_told_whose_it_is(half: Path, again: Lth) -> None:
    folder = RunPaths(half).round(0, "ticket", 1).claims
    with holding(folder, "4711") as pid:
        claim = sorted(folder.iterdir())[-1].relative_to(half.parent)
        told = again("--only", "arm=ticket", "round=1")
        assert_told(told, f"pid {pid} on {socket.gethostname()} (job 4711)", f"remove {claim}", "ticket/round_01")
        assert status.state(Experiment.at(MADE, half).tasks[1], RunPaths(half)) == "running"
        run = Experiment.at(MADE, half).established()
        lottery.run(run, [task for task in run.tasks if (task.arm, task.round) == ("random", 1)])  # another task
    assert status.state(run.tasks[1], RunPaths(half)) == "interrupted"


def test_the_claim_of_a_dead_process_is_taken_over(half: Path, whole: Path) -> None:
    folder = RunPaths(half).round(0, "ticket", 1).claims
    before = len(list(folder.iterdir()))
    with holding(folder, "4711"):
        pass
    play(MADE, half)
    assert read_json(RunPaths(half).round(0, "ticket", 1).result)["attempt"] == before + 2
    assert_same(half, proof(whole))


def claim(folder: Path, **changes: Any) -> Path:
    """A claim of this very process, with something changed."""
    number = claims.acquire(folder)
    path = folder / f"{number:06d}"
    files.write_json(path, {**read_json(path), **changes})
    return path


def test_a_pid_that_was_given_to_another_process_is_dead(tmp_path: Path) -> None:
    claim(tmp_path, started="another boot/12345")
    assert claims.acquire(tmp_path) == 2


def test_without_that_the_claim_holds(tmp_path: Path) -> None:
    claim(tmp_path)
    with pytest.raises(UserError, match=f"pid {os.getpid()}"):
        claims.acquire(tmp_path)


def test_a_claim_of_another_host_is_respected(tmp_path: Path) -> None:
    path = claim(tmp_path, host="node17", pid=1, job="99")
    with pytest.raises(UserError, match=r"pid 1 on node17 \(job 99\).*if that host is gone for good remove") as caught:
        claims.acquire(tmp_path)
    assert str(path) in str(caught.value)
    path.unlink()
    assert claims.acquire(tmp_path) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}', "\x00\x00"])
def test_a_torn_claim_is_nobodys(content: str, tmp_path: Path) -> None:
    (tmp_path / "000003").write_text(content)
    assert claims.acquire(tmp_path) == 4


def everyone(works: list[Callable[[], object]]) -> list[int]:
    """Exit codes of processes that all begin at the same moment."""
    gate, opened = os.pipe()

    def wait(work: Callable[[], object]) -> None:
        os.close(opened)
        os.read(gate, 1)  # ends when the last writer is gone
        work()

    pids = [fork(partial(wait, work)) for work in works]
    os.close(opened)
    os.close(gate)
    return [ended(pid) for pid in pids]


def established(config: Config, root: Path) -> None:
    Experiment.at(config, root).established()


@pytest.mark.slow
def test_many_processes_make_the_folder_at_once(tmp_path: Path) -> None:
    data.load(MADE.data)
    root = tmp_path / "run"
    assert everyone([partial(established, MADE, root)] * 24) == [DONE] * 24
    assert sorted(path.name for path in root.iterdir()) == ["config.yaml", "provenance.json"]
    assert settings.binding(settings.load(root / "config.yaml")) == settings.binding(MADE)


def test_of_two_configs_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    data.load(MADE.data)
    other = tiny(train={"lr": 0.9})
    codes = everyone([partial(established, config, tmp_path / "run") for _ in range(6) for config in (MADE, other)])
    assert sorted(set(codes)) == [DONE, USER]
    assert set(codes[::2]) != set(codes[1::2]) and len(set(codes[::2])) == len(set(codes[1::2])) == 1


def test_of_many_processes_one_gets_the_task(tmp_path: Path) -> None:
    blocked, release = os.pipe()

    def hold() -> None:
        os.close(release)
        claims.acquire(tmp_path / "claims")
        os.read(blocked, 1)  # alive until all others have tried

    pids = {fork(hold) for _ in range(12)}
    while len(pids) > 1:
        pid, code = os.wait()
        pids.remove(pid)
        assert os.waitstatus_to_exitcode(code) == USER
    os.close(release)
    assert ended(pids.pop()) == DONE
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["000001"]


@pytest.mark.slow
def test_status_and_report_work_while_a_run_goes_on(half: Path, whole: Path) -> None:
    def work() -> None:
        before_steps(lambda: time.sleep(0.05))
        run = Experiment.at(MADE, half).established()
        lottery.run(run, run.tasks)

    pid, looks = fork(work), 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        status.status(half)
        report.terminal_table(half)
        report.headline(half)
        looks += 1
    assert looks > 1
    assert_same(half, proof(whole))

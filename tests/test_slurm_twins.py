"""Two copies of one task: what is left of a job on a lost node, and the same job, queued again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from proofs import DONE, USER, ended, fork
from tiny_runs import dense, established, result, tiny

from lth_scale import claims, lottery
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.files import read_json, write_json

pytestmark = pytest.mark.kill


def work(run: Experiment, job: str) -> None:
    lottery.run(run, [task for task in run.tasks if dense(task)], job)


def stopping_before_it_publishes(run: Experiment, looks: bool) -> None:
    """An attempt that the cluster forgets about while it is about to publish what it has trained."""
    check = claims.check

    def stopped(folder: Path, attempt: int) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        if looks:
            check(folder, attempt)

    claims.check = stopped
    work(run, "7_0")


@pytest.mark.parametrize("looks", [True, False], ids=["looks", "control"])
def test_one_that_was_overtaken_publishes_nothing(looks: bool, tmp_path: Path) -> None:
    run = established(tiny(), tmp_path)
    orphan = fork(lambda: stopping_before_it_publishes(run, looks))
    assert os.WIFSTOPPED(os.waitpid(orphan, os.WUNTRACED)[1])
    work(run, "7_0")  # the same job takes over at once, though the other lives
    hashes = result(run, "ticket", 0)["hashes"]
    assert result(run, "ticket", 0)["attempt"] == 2
    os.kill(orphan, signal.SIGCONT)
    if not looks:
        while os.WIFSTOPPED(os.waitpid(orphan, os.WUNTRACED)[1]):  # at its next publication
            os.kill(orphan, signal.SIGCONT)
        assert result(run, "ticket", 0)["attempt"] == 1, "without looking it writes over its twin's result"
        return
    assert ended(orphan) == USER
    assert result(run, "ticket", 0)["attempt"] == 2
    assert result(run, "ticket", 0)["hashes"] == hashes


def test_another_job_does_not_take_over_from_a_living_one(tmp_path: Path) -> None:
    run = established(tiny(), tmp_path)
    orphan = fork(lambda: stopping_before_it_publishes(run, True))
    assert os.WIFSTOPPED(os.waitpid(orphan, os.WUNTRACED)[1])
    with pytest.raises(UserError, match=r"\(job 7_0\)"):
        work(run, "8_0")
    for _ in range(2):  # the mask, and the result
        os.kill(orphan, signal.SIGCONT)
        time.sleep(0)
        code = os.waitpid(orphan, os.WUNTRACED)[1]
    while os.WIFSTOPPED(code):
        os.kill(orphan, signal.SIGCONT)
        code = os.waitpid(orphan, os.WUNTRACED)[1]
    assert os.waitstatus_to_exitcode(code) == DONE


def elsewhere(folder: Path, age: float) -> None:
    """A claim of a host that was last heard of some seconds ago."""
    path = folder / f"{claims.acquire(folder, '9_0'):06d}"
    content: dict[str, Any] = read_json(path)
    write_json(path, {**content, "host": "node17"})
    then = path.stat().st_mtime - age
    os.utime(path, (then, then))


def test_a_host_that_is_silent_for_long_is_taken_for_dead(tmp_path: Path) -> None:
    elsewhere(tmp_path, claims.SILENCE + 60)
    assert claims.acquire(tmp_path, "10_0") == 2


def test_one_that_was_heard_of_is_not(tmp_path: Path) -> None:
    elsewhere(tmp_path, claims.SILENCE - 60)
    with pytest.raises(UserError, match="on node17"):
        claims.acquire(tmp_path, "10_0")
    assert claims.acquire(tmp_path, "9_0") == 2, "but its own job, queued again, need not wait"


def test_a_living_owner_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.02)
    with claims.claimed(tmp_path, "9_0", only=True) as attempt:
        path = tmp_path / f"{attempt:06d}"
        os.utime(path, (1.0, 1.0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 1.0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1.0

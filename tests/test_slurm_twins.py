"""Two copies of one task: what is left of a job on a lost node, and the same job, queued again."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from proofs import DONE, USER, assert_same, ended, fork, proof
from tiny_runs import K, T, dense, established, result, tiny

from lth_scale import checkpoint, claims, lottery
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.files import read_json, write_json

pytestmark = pytest.mark.kill

CONFIG = tiny(train={"checkpoint_every": "10it"}, rewind={"at": f"{K}it"})


def work(run: Experiment, job: str) -> None:
    lottery.run(run, [task for task in run.tasks if dense(task)], job)


def stopping_before(run: Experiment, publication: int, looks: bool) -> None:
    """An attempt that the cluster forgets about while it is about to publish something for the nth time."""
    check, count = claims.check, itertools.count(1)

    def stopped(folder: Path, attempt: int) -> None:
        if next(count) == publication:
            os.kill(os.getpid(), signal.SIGSTOP)
        if looks:
            check(folder, attempt)

    claims.check = stopped
    work(run, "7_0")


def publications(run: Experiment) -> int:
    """How often an attempt looks whether it still owns its round: before rewind points, checkpoints, mask, result."""
    with pytest.MonkeyPatch.context() as patch:
        calls: list[int] = []
        patch.setattr(claims, "check", lambda folder, attempt: calls.append(attempt))
        work(run, "7_0")
    return len(calls)


def overtaken(run: Experiment, publication: int, looks: bool) -> int:
    """Its twin, the same job queued again, takes the round over and finishes; its exit code when it wakes up."""
    orphan = fork(lambda: stopping_before(run, publication, looks))
    assert os.WIFSTOPPED(os.waitpid(orphan, os.WUNTRACED)[1])
    work(run, "7_0")
    os.kill(orphan, signal.SIGCONT)
    return ended(orphan)


def test_one_that_was_overtaken_publishes_nothing(tmp_path: Path) -> None:
    """Before whatever publication it was stopped."""
    whole = established(CONFIG, tmp_path / "whole")
    count = publications(whole)
    assert count == 2 + 3 * 2 + 2  # theta_k and three checkpoints, each with what it replaces; mask and result
    for publication in range(1, count + 1):
        run = established(CONFIG, tmp_path / str(publication))
        assert overtaken(run, publication, looks=True) == USER
        assert_same(run.paths.root, proof(whole.paths.root), f"stopped before publication {publication}")
        assert len(checkpoints(run)) == 1 and result(run, "ticket", 0)["attempt"] == 2


def test_without_looking_it_would(tmp_path: Path) -> None:
    """The control: it replaces theta_k and leaves checkpoints. Its result still does not replace its twin's."""
    run = established(CONFIG, tmp_path)
    assert overtaken(run, 1, looks=False) == USER
    assert checkpoints(run) == [f"step_{T:08d}.attempt_{attempt}" for attempt in (2, 1)]
    assert result(run, "ticket", 0)["attempt"] == 2


def checkpoints(run: Experiment) -> list[str]:
    return [path.name for path in checkpoint.candidates(run.paths.round(0, "ticket", 0).checkpoints)]


def test_another_job_does_not_take_over_from_a_living_one(tmp_path: Path) -> None:
    run = established(tiny(), tmp_path)
    owner = fork(lambda: stopping_before(run, 1, looks=True))
    assert os.WIFSTOPPED(os.waitpid(owner, os.WUNTRACED)[1])
    with pytest.raises(UserError, match=r"\(job 7_0\)"):
        work(run, "8_0")
    os.kill(owner, signal.SIGCONT)
    assert ended(owner) == DONE
    assert result(run, "ticket", 0)["attempt"] == 1


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

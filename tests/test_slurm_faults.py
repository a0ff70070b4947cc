"""Whatever a cluster does to a round in its middle, on a real Slurm on this machine: it goes on, or ends clearly.

Where it goes on, it ends with the bits of a run that was never interrupted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_lab import (
    DENSE,
    MIDDLE,
    ONE,
    Lab,
    differing,
    finished,
    go,
    log,
    play,
    rank,
    reference,
    result,
    running,
    script,
    stand,
    states,
    submit,
)

from lth_scale.slurm import queue

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

# Nodes that are taken away have no other jobs, and one to spare.
COMMON, PREEMPTED, GONE, MUTE = ("1", "2", "3", "4"), ("5",), ("6", "7"), ("8", "9")
BOTH = {"seed_0/ticket/round_00", "seed_0/ticket/round_01"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("lab"), nodes=9) as made:
        yield made


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs below, each with what befalls it."""
    folder = tmp_path_factory.mktemp("runs")
    reference()
    scenarios = [forgotten, limited, muted, preempted, beheaded, cancelled, hungry, held]
    play(lab, folder, [*scenarios, *([gone] if lab.isolated else [])])
    return folder


def send(lab: Lab, run: Path, *words: str, on: tuple[str, ...] = COMMON, **site: str | int) -> None:
    """Submit to some nodes only."""
    others = ",".join(f"n{number}" for number in "123456789" if number not in on)
    submit(run, *ONE, *words, site=lab.site(options=[f"--exclude={others}"], **site), report=False)


def cancelled(lab: Lab, run: Path) -> Iterator[None]:
    stand(run)
    send(lab, run)
    yield
    queue.call("scancel", lab.job(run).name)


def test_scancel_is_final_until_it_is_submitted_again(lab: Lab, runs: Path) -> None:
    run = runs / "cancelled"
    lab.until_over(run)  # neither queued again by itself, nor waited for in vain
    assert not finished(run)
    assert f"stopped by SIGTERM at step {MIDDLE}, checkpoint saved" in log(run, "ticket-r00-*")
    found = states(run)
    assert found[0, "ticket", 0].state == "interrupted" and "CANCELLED" in found[0, "ticket", 0].why
    assert found[0, "ticket", 1].why == "by seed=0 arm=ticket round=0, which was interrupted"
    go(run)
    send(lab, run)
    lab.until_over(run)
    assert finished(run) == BOTH and result(run)["attempt"] == 2
    assert not differing(run, reference())


def beheaded(lab: Lab, run: Path) -> Iterator[None]:
    stand(run)
    send(lab, run)
    yield
    os.kill(script(lab.job(run).name), signal.SIGKILL)


def test_a_batch_script_that_is_killed_ends_the_job(lab: Lab, runs: Path) -> None:
    run = runs / "beheaded"
    lab.until_over(run)  # dependants neither start nor hang
    assert not finished(run)
    found = states(run)
    assert found[0, "ticket", 0].state == "interrupted" and "FAILED (signal 9)" in found[0, "ticket", 0].why
    assert found[0, "ticket", 1].why == "by seed=0 arm=ticket round=0, which was interrupted"
    go(run)
    send(lab, run, *DENSE)
    lab.until_over(run)
    assert result(run)["attempt"] == 2
    assert not differing(run, reference())


def preempted(lab: Lab, run: Path) -> Iterator[None]:
    stand(run)
    send(lab, run, *DENSE, on=PREEMPTED)
    yield
    queue.submit(["--partition=high", "--nodelist=n5", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"])


def test_a_higher_partition_preempts_it(lab: Lab, runs: Path) -> None:
    run = runs / "preempted"
    lab.until_over(run)
    told = log(run, "ticket-r00-*")
    assert re.search(rf"stopped by SIG(TERM|USR1) at step {MIDDLE}, checkpoint saved", told), "before it left"
    assert "restart 1" in told and "restart 2" not in told, "queued again by Slurm, not twice"
    assert result(run)["attempt"] == 2
    assert not differing(run, reference())


def held(lab: Lab, run: Path) -> Iterator[None]:
    yield
    send(lab, run)
    queue.call("scontrol", "hold", lab.job(run, round=1).name)


def test_a_held_round_waits_until_it_is_released(lab: Lab, runs: Path) -> None:
    run = runs / "held"
    lab.until(lambda: finished(run), "the dense round")
    time.sleep(2)  # in which it would have begun
    found = states(run)
    assert (found[0, "ticket", 0].state, found[0, "ticket", 1].state) == ("done", "held")
    queue.call("scontrol", "release", lab.job(run, round=1).name)
    lab.until_over(run)
    assert finished(run) == BOTH
    assert not differing(run, reference())


def forgotten(lab: Lab, run: Path) -> Iterator[None]:
    stand(run)
    send(lab, run)
    yield
    pid = rank(lab.job(run).name)
    time.sleep(3)  # a controller that is killed forgets what it did in the last seconds, so this is the first fault
    lab.cluster("crash", "controller")
    os.kill(pid, signal.SIGUSR1)  # so that it wants to be queued again while nobody is there to do it
    lab.until(lambda: not Path(f"/proc/{pid}").exists(), "the end of training")
    go(run)
    lab.cluster("revive", "controller")


def test_a_crash_of_the_controller_is_waited_out(lab: Lab, runs: Path) -> None:
    run = runs / "forgotten"
    lab.until_over(run)
    assert f"stopped by SIGUSR1 at step {MIDDLE}" in log(run, "ticket-r00-*")
    assert finished(run) == BOTH and result(run)["attempt"] == 2
    assert not differing(run, reference())


def limited(lab: Lab, run: Path) -> Iterator[None]:
    yield
    stand(run)
    # Slurm looks every half minute: the warning comes after 30 to 60 seconds.
    send(lab, run, *DENSE, time="0:02:00", lead=90)


def test_the_time_limit_queues_it_again(lab: Lab, runs: Path) -> None:
    run = runs / "limited"
    lab.until_over(run)
    told = log(run, "ticket-r00-*")
    saved = re.search(r"stopped by SIGUSR1 at step (\d+), checkpoint saved", told)
    assert saved and 0 < int(saved[1]) <= MIDDLE  # less, where it takes half a minute to get there
    assert "restart 1" in told and result(run)["attempt"] >= 2
    assert not list((run / "submit").glob("tries/*")), "that was no failure"
    assert not differing(run, reference())


def gone(lab: Lab, run: Path) -> Iterator[None]:
    stand(run)
    send(lab, run, *DENSE, on=GONE)
    yield
    lab.cluster("crash", lab.job(run).nodes)
    go(run)


def test_a_node_that_is_gone(lab: Lab, runs: Path) -> None:
    lab.require_isolated()
    run = runs / "gone"
    lab.until_over(run)
    assert "restart 1" in log(run, "ticket-r00-*")
    assert result(run)["attempt"] == 2, "the same job takes over at once, from another host too"
    assert not differing(run, reference())


def muted(lab: Lab, run: Path) -> Iterator[None]:
    stand(run)
    send(lab, run, *DENSE, on=MUTE)
    yield
    job = lab.job(run)
    os.kill(orphan := rank(job.name), signal.SIGSTOP)
    lab.cluster("mute", job.nodes)
    go(run)
    (run / "orphan").write_text(json.dumps([orphan, job.nodes]))


def test_a_slurmd_that_is_killed_leaves_a_twin_behind(lab: Lab, runs: Path) -> None:
    """The job goes on elsewhere; when what is left of it wakes up it publishes nothing, and leaves its twin alone."""
    run = runs / "muted"
    orphan, node = json.loads((run / "orphan").read_text())
    lab.until_over(run)
    made = (run / "seed_0/ticket/round_00/result.json").read_bytes()
    assert result(run)["attempt"] == 2
    assert not differing(run, reference())
    claim = run / "seed_0/ticket/round_00/claims/000001"
    assert claim.read_text() and Path(f"/proc/{orphan}").exists()
    os.kill(orphan, signal.SIGCONT)
    lab.until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan's end")
    assert not claim.read_text(), "it has given up by itself"
    assert (run / "seed_0/ticket/round_00/result.json").read_bytes() == made
    assert not list((run / "submit").glob("tries/*"))
    lab.cluster("revive", node)
    lab.until(lambda: queue.call("sinfo", "-h", "-n", node, "-t", "idle", "-p", "main"), f"{node} in service again")


def hungry(lab: Lab, run: Path) -> Iterator[None]:
    run.mkdir()
    (run / f"eat_{MIDDLE}").write_text(str(1 << 31))
    yield
    send(lab, run, memory="2000M")


def test_out_of_memory_is_final_after_a_few_tries(lab: Lab, runs: Path) -> None:
    run = runs / "hungry"
    lab.until_over(run)
    assert not finished(run)
    found = states(run)
    assert found[0, "ticket", 0].state == "failed"
    assert "at step 60, exit code 137, 3 tries" in found[0, "ticket", 0].why
    assert found[0, "ticket", 1].why == "by seed=0 arm=ticket round=0, which failed"
    assert "exceeded memory limit" in log(run, "ticket-r00-*")
    (run / f"eat_{MIDDLE}").unlink()
    send(lab, run, *DENSE)
    lab.until_over(run)
    assert result(run)["attempt"] == 4
    assert not differing(run, reference())

"""Whole runs on a real Slurm cluster of two nodes on this machine, to the end."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_lab import (
    DENSE,
    ONE,
    SEVERAL,
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
    stand,
    states,
    submit,
)

from lth_scale import cli
from lth_scale.masks import Mask
from lth_scale.slurm import queue

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

HOSTILE = 'it\'s $(touch pwned) `touch pwned` "a" %j %; é -- *'
ROUNDS = ("ticket/round_00", "ticket/round_01", "random/round_01")
FOUR = (*ONE, *DENSE, "--hardware.nodes=2", "--hardware.devices=2")
LATER = 150  # a second step to stand still at


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("lab"), nodes=2) as made:
        yield made


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs below, begun together."""
    folder = tmp_path_factory.mktemp("runs")
    play(lab, folder, [*([warned, ddp, deepspeed_stage_2] if lab.isolated else []), poisoned, piecemeal, chain])
    return folder


def chain(lab: Lab, run: Path) -> Iterator[None]:
    run = run / HOSTILE
    submit(run, *SEVERAL)
    first = sorted(job.name for job in queue.jobs(run))
    assert len(first) == 2 * len(ROUNDS) + 1  # and the report
    submit(run, *SEVERAL)
    assert sorted(job.name for job in queue.jobs(run)) == first, "what is in the queue is not submitted again"
    yield


def test_a_chain_goes_to_the_end_with_its_report(lab: Lab, runs: Path) -> None:
    run = runs / "chain" / HOSTILE
    lab.until_over(run)
    assert finished(run) == {f"seed_{seed}/{round}" for seed in (0, 7) for round in ROUNDS}
    assert (run / "report.html").exists()
    assert not differing(run, reference())
    assert {task.state for task in states(run).values()} == {"done"}
    submit(run, *SEVERAL)
    assert not queue.jobs(run), "what is done is not submitted again"
    assert not list(runs.glob("**/pwned")) and not Path("pwned").exists()


def piecemeal(lab: Lab, run: Path) -> Iterator[None]:
    submit(run, *ONE, "--max-submitted=3")
    assert [(job.kind, job.round) for job in queue.jobs(run)] == [("ticket", 0), ("chain", 0)]
    yield


def test_what_does_not_fit_into_the_queue_is_submitted_later_by_itself(lab: Lab, runs: Path) -> None:
    run = runs / "piecemeal"
    lab.until_over(run)
    assert finished(run) == {"seed_0/ticket/round_00", "seed_0/ticket/round_01"}
    assert (run / "report.html").exists()
    assert not differing(run, reference())


def ddp(lab: Lab, run: Path) -> Iterator[None]:
    submit(run, *FOUR, "--hardware.strategy=ddp", report=False)
    yield


def deepspeed_stage_2(lab: Lab, run: Path) -> Iterator[None]:
    submit(run, *FOUR, "--hardware.strategy=deepspeed_stage_2", report=False)
    yield


def test_two_nodes_of_two_tasks(lab: Lab, runs: Path) -> None:
    lab.require_isolated()
    both = [runs / "ddp", runs / "deepspeed_stage_2"]
    for run in both:
        lab.until_over(run)
        assert result(run)["attempt"] == 1
        assert result(run)["zeros"]["nonzero"] == 0
    masks = [Mask.load(run / "seed_0/ticket/round_01/mask.safetensors") for run in both]
    assert masks[0] == masks[1], "four ranks add in another order under each, but remove the same weights"


def warned(lab: Lab, run: Path) -> Iterator[None]:
    stand(run)
    stand(run, LATER)
    submit(run, *FOUR, "--hardware.strategy=ddp", site=lab.site(), report=False)
    yield
    queue.call("scancel", "--signal=USR1", lab.job(run).name)  # as --signal does: to the step, not to the script


def test_four_ranks_save_at_one_step_and_survive_the_death_of_one(lab: Lab, runs: Path) -> None:
    lab.require_isolated()
    run = runs / "warned"
    lab.until_standing(run, LATER)
    element = lab.job(run).name
    os.kill(rank(element, 3), signal.SIGKILL)
    go(run, LATER)
    lab.until_over(run)
    told = log(run, f"ticket-r00-{element}")
    assert re.findall(r"stopped by SIGUSR1 at step (\d+), checkpoint saved", told) == ["101"], "one speaks for all"
    assert "failed at step 120" in told and "1 of 3 tries" in told
    assert result(run)["attempt"] == 3
    lab.until_over(runs / "ddp")
    assert not differing(run, runs / "ddp")


def poisoned(lab: Lab, run: Path) -> Iterator[None]:
    run.mkdir()
    (run / "seed_7").write_text("a file where a folder should be")
    submit(run, *SEVERAL)
    yield


def test_a_poisoned_seed_stops_alone(lab: Lab, runs: Path) -> None:
    run = runs / "poisoned"
    lab.until_over(run)
    assert finished(run) == {f"seed_0/{round}" for round in ROUNDS}
    assert (run / "report.html").exists()
    assert "cannot write" in log(run, "ticket-r00-*_1")
    assert not list((run / "submit" / "logs").glob("*-r01-*_1.log")), "its dependants never start"
    found = states(run)
    assert found[7, "ticket", 0].state == "failed" and "submit/logs/ticket-r00-" in found[7, "ticket", 0].why
    assert found[7, "random", 1].why == "by seed=7 arm=ticket round=0, which failed"
    (run / "seed_7").unlink()
    submit(run, *SEVERAL)
    again = {("ticket", 0, 1), ("ticket", 1, 1), ("random", 1, 1), ("report", 0, None)}
    assert {(job.kind, job.round, job.index) for job in queue.jobs(run)} == again
    assert {task.state for (seed, *_), task in states(run).items() if seed == 7} <= {"queued", "running", "waiting"}
    queue.cancel([lab.job(run, "report", index=None).name])
    lab.until_over(run)
    assert len(finished(run)) == 2 * len(ROUNDS)
    assert not differing(run, reference())


def test_a_hundred_seeds_of_twenty_rounds_are_submitted_quickly(lab: Lab, tmp_path: Path) -> None:
    begun = time.monotonic()
    site = lab.site(options=["--hold"])
    submit(tmp_path, "--prune.rounds=20", "--run.seeds=0-99", site=site)
    assert time.monotonic() - begun < 10
    found = queue.jobs(tmp_path)
    assert len(found) == 100 * (1 + 3 * 20) + 1
    assert len({job.array for job in found}) == 1 + 3 * 20 + 1, "calls of sbatch"
    assert cli.main(["cancel", str(tmp_path)]) == 0
    lab.until_over(tmp_path)

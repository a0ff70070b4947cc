"""Whole runs on a real Slurm cluster of two nodes: to the end, and through whatever a cluster does to jobs."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from slurm_lab import SMALL, Lab, finished, result, submit
from slurm_lab import _empty_queue as _empty_queue
from slurm_lab import lab as lab

from lth_scale import cli, lottery, settings
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.slurm import queue
from lth_scale.slurm.state import known
from lth_scale.status import open_experiment

pytestmark = pytest.mark.slurm

ONE = ("--run.seeds=0", "--run.arms=[ticket]")
HOSTILE = 'it\'s $(touch pwned) `touch pwned` "a" %j %; é -- *'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same experiment of one seed in this process, never interrupted."""
    run = tmp_path_factory.mktemp("whole")
    made = Experiment.at(settings.parse([*SMALL, *ONE]), run).established()
    lottery.run(made, made.tasks)
    return run


def same(run: Path, whole: Path, *rounds: int) -> bool:
    """Whether rounds of seed 0 ended with the same bits: weights, masks, and the masks they leave."""
    after = [Mask.load(folder / "seed_0/ticket/round_01/mask.safetensors") for folder in (run, whole)]
    return after[0] == after[1] and all(result(run, r)["hashes"] == result(whole, r)["hashes"] for r in rounds)


def test_a_chain_goes_to_the_end_with_its_report(lab: Lab, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / HOSTILE
    both = ("--run.seeds=0,7", "--run.arms=[ticket,random]")
    submit(run, *both)
    first = sorted(job.name for job in queue.jobs(run))
    assert len(first) == 2 * 3 + 1  # two seeds of three rounds, and the report
    submit(run, *both)
    assert sorted(job.name for job in queue.jobs(run)) == first, "what is in the queue is not submitted again"
    lab.until_over()
    rounds = ("ticket/round_00", "ticket/round_01", "random/round_01")
    assert finished(run) == {f"seed_{seed}/{round}" for seed in (0, 7) for round in rounds}
    assert (run / "report.html").exists()
    assert same(run, whole, 0, 1)
    submit(run, *both)
    assert not queue.jobs(run), "what is done is not submitted again"
    assert not list(tmp_path.glob("**/pwned")) and not Path("pwned").exists()


def test_two_nodes_of_two_tasks(lab: Lab, tmp_path: Path) -> None:
    shared = ("--hardware.nodes=2", "--hardware.devices=2", "--only", "round=0")
    for strategy in ("ddp", "deepspeed_stage_2"):
        submit(tmp_path / strategy, *ONE, "--train.duration=40it", f"--hardware.strategy={strategy}", *shared)
    lab.until_over()
    masks = [Mask.load(run / "seed_0/ticket/round_01/mask.safetensors") for run in sorted(tmp_path.iterdir())]
    assert masks[0] == masks[1], "four ranks add in another order under each, but remove the same weights"
    assert {result(run)["zeros"]["nonzero"] for run in tmp_path.iterdir()} == {0}


def test_the_warning_before_the_time_limit_queues_it_again(lab: Lab, whole: Path, tmp_path: Path) -> None:
    submit(tmp_path, *ONE)
    element = lab.training(tmp_path)
    queue.call("scancel", "--signal=USR1", element)  # as --signal=USR1@... does: to the step, not to the script
    lab.until_over()
    (log,) = (tmp_path / "submit/logs").glob("ticket-r00-*.log")
    saved = re.search(r"stopped by SIGUSR1 at step (\d+), checkpoint saved", log.read_text())
    assert saved and 0 < int(saved[1]) < 1200
    assert result(tmp_path)["attempt"] == 2
    assert same(tmp_path, whole, 0, 1)
    assert (tmp_path / "report.html").exists()


def test_a_higher_partition_preempts_it(lab: Lab, whole: Path, tmp_path: Path) -> None:
    submit(tmp_path, *ONE, "--only", "round=0")
    lab.training(tmp_path)
    lab.sbatch("--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1")
    lab.until_over()
    (log,) = (tmp_path / "submit/logs").glob("ticket-r00-*.log")
    assert "checkpoint saved" in log.read_text(), "before it left"
    assert "restart 1" in log.read_text() and "restart 2" not in log.read_text(), "queued again by Slurm, not twice"
    assert result(tmp_path)["attempt"] == 2
    assert same(tmp_path, whole, 0)


def test_a_crash_is_tried_again(lab: Lab, whole: Path, tmp_path: Path) -> None:
    submit(tmp_path, *ONE, "--only", "round=0")
    element = lab.training(tmp_path)
    queue.call("scancel", "--signal=HUP", element)  # KILL would end the job, ABRT dump it
    lab.until_over()
    assert result(tmp_path)["attempt"] == 2
    assert same(tmp_path, whole, 0)
    assert [path.name for path in (tmp_path / "submit/tries").iterdir()] == ["seed_0-ticket-00.json"]


def test_a_node_that_is_gone(lab: Lab, whole: Path, tmp_path: Path) -> None:
    submit(tmp_path, *ONE, "--only", "round=0")
    lab.training(tmp_path)
    job = lab.job(tmp_path, "ticket", 0)
    assert job is not None
    lab.cluster("crash", job.nodes)
    queue.call("scontrol", "update", f"nodename={job.nodes}", "state=down", "reason=gone")
    lab.until_over()
    lab.cluster("revive", job.nodes)
    queue.call("scontrol", "update", f"nodename={job.nodes}", "state=resume")
    assert result(tmp_path)["attempt"] == 2, "the same job takes over at once, from another host too"
    assert same(tmp_path, whole, 0)


def test_scancel_is_final_until_it_is_submitted_again(lab: Lab, whole: Path, tmp_path: Path) -> None:
    submit(tmp_path, *ONE)
    queue.call("scancel", lab.training(tmp_path))
    lab.until_over()  # neither queued again by itself, nor waited for in vain
    assert not finished(tmp_path)
    assert list((tmp_path / "seed_0/ticket/round_00/checkpoint").glob("step_*")), "it saved on its way out"
    submit(tmp_path, *ONE)
    lab.until_over()
    assert result(tmp_path)["attempt"] == 2
    assert same(tmp_path, whole, 0, 1)
    assert (tmp_path / "report.html").exists()


def test_a_poisoned_seed_stops_alone(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "seed_1").write_text("a file where a folder should be")
    submit(tmp_path, "--train.duration=40it", "--run.seeds=0-1", "--run.arms=[ticket,random]")
    lab.until_over()
    assert finished(tmp_path) == {
        f"seed_0/{round}" for round in ("ticket/round_00", "ticket/round_01", "random/round_01")
    }
    assert (tmp_path / "report.html").exists()
    (log,) = (tmp_path / "submit/logs").glob("ticket-r00-*_1.log")
    assert "cannot write" in log.read_text()
    assert not list((tmp_path / "submit/logs").glob("*-r01-*_1.log")), "its dependants never start"
    states = {(task.seed, task.arm, task.round): task for task in known(open_experiment(tmp_path))}
    assert states[1, "ticket", 0].state == "failed" and log.name in states[1, "ticket", 0].why
    assert states[1, "random", 1].why == "for seed=1 arm=ticket round=0"
    (tmp_path / "seed_1").unlink()
    submit(tmp_path, "--train.duration=40it", "--run.seeds=0-1", "--run.arms=[ticket,random]")
    assert {(job.kind, job.index) for job in queue.jobs(tmp_path)} == {("ticket", 1), ("random", 1), ("report", None)}
    assert {task.state for task in known(open_experiment(tmp_path)) if task.seed == 1} <= {
        "queued",
        "running",
        "waiting",
    }
    assert cli.main(["cancel", str(tmp_path)]) == 0
    lab.until_over()


def test_a_hundred_seeds_of_twenty_rounds_are_submitted_quickly(lab: Lab, tmp_path: Path) -> None:
    queue.call("scontrol", "update", "partition=main", "state=down")
    try:
        begun = time.monotonic()
        submit(tmp_path, "--prune.rounds=20", "--run.seeds=0-99")
        assert time.monotonic() - begun < 10
        assert len(queue.jobs(tmp_path)) == 100 * (1 + 3 * 20) + 1
    finally:
        subprocess.run(["scancel", "--me"], check=True)
        queue.call("scontrol", "update", "partition=main", "state=up")

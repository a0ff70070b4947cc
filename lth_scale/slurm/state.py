"""What is known of every round: what the run folder proves, joined with what the queue says, where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from lth_scale import files, status
from lth_scale.experiment import Experiment
from lth_scale.slurm import queue
from lth_scale.slurm.queue import Element
from lth_scale.tasks import Task

HELD = ("JobHeldUser", "JobHeldAdmin", "launch failed requeued held")


@dataclass(frozen=True)
class Known:
    """One task.

    Args:
        seed: and
        arm: and
        round: which.
        state: done, running, interrupted, failed, ready, waiting; from the queue: queued, held.
        why: what it waits for, or how it failed; empty if there is nothing to say.
        accuracy: on test at the end, in [0, 1]; None until it is done.
        job: its element in the queue.
        requeued: how often that was queued again.
        left: time left, as Slurm writes it.
        nodes: where it runs.
    """

    seed: int
    arm: str
    round: int
    state: str
    why: str = ""
    accuracy: float | None = None
    job: str | None = None
    requeued: int = 0
    left: str | None = None
    nodes: str | None = None


def known(experiment: Experiment) -> list[Known]:
    """All tasks. Without Slurm's commands, or without jobs of this user, only what the folder proves."""
    jobs = _jobs(experiment)
    return [_joined(experiment, task, jobs.get(task)) for task in experiment.tasks]


def _jobs(experiment: Experiment) -> Mapping[Task, Element]:
    paths = experiment.paths.submit
    if not paths.seeds.exists() or not queue.available():
        return {}
    seeds = files.read_json(paths.seeds)
    indexed = ((job.index, job) for job in queue.jobs(paths.run))
    return {Task(job.round, seeds[index], job.kind): job for index, job in indexed if index is not None}


def _joined(experiment: Experiment, task: Task, job: Element | None) -> Known:
    found, why = status.state(task, experiment.paths), ""
    if found == "done":
        return Known(*_key(task), found, accuracy=_accuracy(experiment, task))
    if job is None:
        found, why = _alone(experiment, task, found)
        return Known(*_key(task), found, why)
    if job.state == "PENDING":
        found, why = ("held" if job.reason in HELD else "queued"), job.reason or ""
        if job.reason == "Dependency" and task.needs:
            found, why = "waiting", f"for {task.needs}"
    elif job.state != "COMPLETING":
        found = "running"
    left = job.left if found == "running" else None
    return Known(*_key(task), found, why, None, job.name, job.restarts, left, job.nodes or None)


def _key(task: Task) -> tuple[int, str, int]:
    return task.seed, task.arm, task.round


def _alone(experiment: Experiment, task: Task, found: str) -> tuple[str, str]:
    """Nothing in the queue has it: interrupted, failed for good, or blocked by such a one."""
    record = experiment.paths.submit.tries(task.seed, task.arm, task.round)
    if found in ("interrupted", "ready") and record.exists() and (last := files.read_json(record))["final"]:
        log = f"submit/logs/{task.arm}-r{task.round:02d}-{last['job']}.log"
        return "failed", f"at step {last['step']}, exit code {last['code']}, {last['tries']} tries; see {log}"
    if found == "waiting":
        return found, f"for {task.needs}"
    return found, ""


def _accuracy(experiment: Experiment, task: Task) -> float | None:
    test = files.read_json(task.paths(experiment.paths).result)["end"].get("test")
    return test["accuracy"] if test else None


def as_json(found: list[Known]) -> list[dict[str, Any]]:
    """One object a task, its fields as in :class:`Known`."""
    return [asdict(task) for task in found]


def table(root: Path, found: list[Known]) -> Table:
    """A line for each round of each arm: how many seeds are in which state, and what there is to say."""
    made = Table(title=str(root), title_justify="left")
    for column in ("arm", "round", "seeds", "accuracy %", "to know"):
        made.add_column(column, justify="right" if column in ("round", "accuracy %") else "left")
    for arm, number in dict.fromkeys((task.arm, task.round) for task in found):
        row = [task for task in found if (task.arm, task.round) == (arm, number)]
        states = [task.state for task in row]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        accuracies = [task.accuracy for task in row if task.accuracy is not None]
        mean = f"{100 * sum(accuracies) / len(accuracies):.2f}" if accuracies else ""
        made.add_row(arm, str(number), counts, mean, "; ".join(filter(None, map(_said, row))))
    return made


def _said(task: Known) -> str:
    if task.state == "running" and task.job:
        again = f", start {task.requeued + 1}" if task.requeued else ""
        return f"seed {task.seed} on {task.nodes}, {task.left} left{again}"
    if task.state in ("failed", "held", "interrupted"):
        return f"seed {task.seed} {task.state}" + (f" ({task.why})" if task.why else "")
    return ""

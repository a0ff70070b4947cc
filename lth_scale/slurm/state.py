"""What is known of every round: what the run folder proves, joined with what Slurm says, where there is one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from lth_scale import files, status
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.slurm import accounting, queue
from lth_scale.slurm.queue import Element
from lth_scale.tasks import Task

# What is said of a task that nothing is going to finish by itself, to those that need it.
STUCK = {
    "failed": "failed",
    "held": "is held",
    "interrupted": "was interrupted",
    "ready": "is not in the queue",
}


@dataclass(frozen=True)
class Known:
    """One task.

    Args:
        seed: and
        arm: and
        round: which.
        state: done, stopped, running, interrupted, failed, ready, waiting, blocked; from the queue: queued, held.
        why: what it waits for, or how it ended; empty if there is nothing to say.
        accuracy: on test at the end, in [0, 1]; None until it is done.
        job: its element in the queue.
        requeued: how often that was queued again.
        left: time left, as Slurm writes it.
        nodes: where it runs.
        step: how far it is known to have come, on the dense clock, if it is running or interrupted.
        steps: where it ends.
        by: the task at the root of what it is blocked by.
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
    step: int | None = None
    steps: int | None = None
    by: Task | None = None

    @property
    def task(self) -> Task:
        """Which it is."""
        return Task(self.round, self.seed, self.arm)


@dataclass
class Heard:
    """What Slurm says.

    Args:
        sent: whether the run was ever submitted.
        asked: whether squeue answered; else nothing is known of jobs.
        note: why it did not.
        live: what is in the queue.
        ended: how the newest job of a task ended.
        others: report and chain jobs in the queue.
    """

    sent: bool = False
    asked: bool = False
    note: str = ""
    live: Mapping[Task, Element] = field(default_factory=dict)
    ended: dict[Task, Element] = field(default_factory=dict)
    others: list[Element] = field(default_factory=list)

    def stuck(self, known: Known) -> bool:
        """Whether a task is not going to be done unless somebody does something."""
        if known.state == "ready":  # of a run that was never submitted, somebody may be about to train it
            return self.asked and not any(job.kind == "chain" for job in self.others)
        return known.state in ("failed", "held") or (known.state == "interrupted" and (self.asked or not self.sent))


@dataclass(frozen=True)
class Seen:
    """All tasks, in an order in which what a task needs comes before it, and what Slurm said."""

    tasks: list[Known]
    heard: Heard

    @property
    def busy(self) -> bool:
        """Whether anything is queued or running."""
        rounds = any(known.state in ("queued", "running") for known in self.tasks)
        return rounds or any(not job.held for job in self.heard.others)

    @property
    def stuck(self) -> list[Known]:
        """What somebody has to do something about."""
        return [known for known in self.tasks if self.heard.stuck(known)]


def known(experiment: Experiment) -> list[Known]:
    """All tasks. Without Slurm's commands, or without jobs of this user, only what the folder proves."""
    return look(experiment).tasks


def look(experiment: Experiment) -> Seen:
    """The same, with what Slurm said."""
    found = {task: status.state(task, experiment.paths) for task in experiment.tasks}
    heard = _hear(experiment, found)
    seen: dict[Task, Known] = {}
    for task in experiment.tasks:
        made = _known(experiment, task, found[task], heard)
        seen[task] = _behind(made, [seen[need] for need in task.needs], heard)
    return Seen(list(seen.values()), heard)


def as_json(found: Iterable[Known]) -> list[dict[str, Any]]:
    """One object a task, its fields as in :class:`Known`."""
    return [asdict(task) for task in found]


# --- from Slurm -------------------------------------------------------------------------------------------------------


def _hear(experiment: Experiment, found: Mapping[Task, str]) -> Heard:
    paths = experiment.paths.submit
    if not paths.seeds.exists():
        return Heard()
    if not queue.available():
        return Heard(sent=True, note="Slurm's commands are not here")
    try:
        jobs = queue.remembered(paths.run)
    except UserError as error:
        return Heard(sent=True, note=str(error))
    seeds = dict(enumerate(files.read_json(paths.seeds)))
    live = _by_task((job for job in jobs if job.live), seeds)
    ended = _by_task((job for job in jobs if not job.live), seeds)
    others = [job for job in jobs if job.live and job.index is None]
    forgotten = [task for task, state in found.items() if state in ("interrupted", "ready")]
    if any(task not in live and task not in ended for task in forgotten):
        since = min((path.stat().st_mtime for path in paths.claims.glob("*")), default=0.0)  # the first submission
        ended = _by_task(accounting.ended(paths.run, since), seeds) | ended
    return Heard(True, True, "", live, ended, others)


def _by_task(jobs: Iterable[Element], seeds: Mapping[int, int]) -> dict[Task, Element]:
    """The newest of each task."""
    rounds = sorted((job for job in jobs if job.index in seeds), key=lambda job: int(job.array))
    return {Task(job.round, seeds[job.index], job.kind): job for job in rounds if job.index is not None}


# --- joined -----------------------------------------------------------------------------------------------------------


def _known(experiment: Experiment, task: Task, found: str, heard: Heard) -> Known:
    """One task by itself; whether what it needs is going to be done is seen to later."""
    made, job, paths = Known(task.seed, task.arm, task.round, found), heard.live.get(task), experiment.paths
    if found == "stopped":
        return replace(made, why=files.read_json(task.paths(paths).stopped)["why"])
    if found == "done":
        return _done(experiment, task, made)
    if job is not None:
        made = replace(made, job=job.name, requeued=job.restarts)
        if job.held:
            return replace(made, state="held", why=job.reason or "")
        if job.state in ("PENDING", "REQUEUED"):
            return replace(made, state="queued", why=job.reason or "")
        said = "" if job.state == "RUNNING" else job.state.lower()
        return _at(experiment, task, replace(made, state="running", why=said, left=job.left, nodes=job.nodes or None))
    ending = heard.ended[task].ending if task in heard.ended else ""
    if found == "running":
        host, age = status.owner(task, paths)
        made = replace(made, why="; ".join(filter(None, (age, ending))), nodes=host or None)
        return _at(experiment, task, made)
    made = replace(made, why=ending)
    if failure := _failure(experiment, task, found):
        return replace(made, state="failed", why="; ".join(filter(None, (failure, ending))))
    return _at(experiment, task, made) if found == "interrupted" else made


def _done(experiment: Experiment, task: Task, made: Known) -> Known:
    if not task.trains:
        return made
    try:
        test = files.read_json(task.paths(experiment.paths).result)["end"].get("test")
    except UserError as error:
        return replace(made, why=str(error))
    return replace(made, accuracy=test["accuracy"] if test else None, why=status.twins(task, experiment.paths))


def _at(experiment: Experiment, task: Task, made: Known) -> Known:
    """With how far it has come."""
    step, steps = status.progress(experiment, task) or (None, None)
    return replace(made, step=step, steps=steps)


def _failure(experiment: Experiment, task: Task, found: str) -> str:
    """Why a job of it gave up, if one did."""
    record = experiment.paths.submit.tries(task.seed, task.arm, task.round)
    if found not in ("interrupted", "ready") or not record.exists() or not (last := files.read_json(record))["final"]:
        return ""
    log = f"submit/logs/{task.arm}-r{task.round:02d}-{last['job']}.log"
    return f"at step {last['step']}, exit code {last['code']}, {last['tries']} tries; see {log}"


def _behind(made: Known, needs: Sequence[Known], heard: Heard) -> Known:
    """One task, after what it needs: waiting for it, or blocked by what that cannot go on for."""
    missing = [need for need in needs if need.state not in ("done", "stopped")]
    if not missing or made.state in ("done", "stopped", "running", "held", "interrupted", "failed"):
        return made
    for need in missing:
        if heard.stuck(need):
            return replace(made, state="blocked", why=f"by {need.task}, which {STUCK[need.state]}", by=need.task)
        if need.by:
            return replace(made, state="blocked", why=need.why, by=need.by)
    return replace(made, state="waiting", why=f"for {' and '.join(str(need.task) for need in missing)}")

"""An experiment sent to Slurm: whatever is neither done nor in the queue. Sent again, it completes what is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lth_scale import claims, files
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.paths import SubmitPaths
from lth_scale.resources import file
from lth_scale.slurm import queue
from lth_scale.slurm.chains import Array, arrays, fitting, spans
from lth_scale.slurm.cluster import Cluster
from lth_scale.slurm.queue import Element
from lth_scale.tasks import Task

SPARE = 2  # jobs beside the rounds: the report, and the one that submits the rest while it runs
FATAL = "--kill-on-invalid-dep=yes"  # what waits for a failed job ends; else it would wait for ever
SCRIPTS = ("round.sbatch", "report.sbatch", "chain.sh")


@dataclass(frozen=True)
class Order:
    """What ``lth submit`` was asked.

    Args:
        only: words that select tasks.
        max_parallel: elements of an array that run at once.
        max_submitted: jobs of the run in the queue.
    """

    only: Sequence[str] = ()
    max_parallel: int | None = None
    max_submitted: int | None = None

    def rest(self, rounds: Sequence[int]) -> list[str]:
        """The same order for later rounds, as words of a command line."""
        limits = {"--max-parallel": self.max_parallel, "--max-submitted": self.max_submitted}
        words = [f"{key}={value}" for key, value in limits.items() if value is not None]
        return [*words, "--only", *self.only, f"round={rounds[0]}-{rounds[-1]}"]


@dataclass(frozen=True)
class Sent:
    """What was submitted.

    Args:
        arrays: by their ids.
        blocked: tasks that wait for tasks that are neither done, nor in the queue, nor wanted.
        live: how many elements were in the queue before.
        later: rounds that a last job will submit.
        last: the id of that job, or of the report's; None: there was no need.
    """

    arrays: dict[str, Array]
    blocked: list[Task]
    live: int
    later: list[int]
    last: str | None


def submit(experiment: Experiment, chosen: Sequence[Task], cluster: Cluster, order: Order) -> Sent:
    """Submit what is missing. Raises UserError when Slurm refuses; what it has taken by then stays, and counts."""
    paths = experiment.paths.submit
    with claims.claimed(paths.claims, "none", only=True):
        experiment = experiment.established()
        indices = _indices(paths, experiment.config.run.replicates)
        if max(indices.values()) >= (limit := queue.largest_array()):
            raise UserError(f"this run has had {len(indices)} seeds; MaxArraySize={limit} of this cluster allows fewer")
        files.make_folder(paths.logs)
        files.write_text(paths.site, cluster.site(experiment.config.hardware.threads, Path.cwd()))
        files.write_text(paths.cluster, cluster.text())
        return _send(experiment, chosen, cluster, order, indices, queue.jobs(paths.run), queue.submit, queue.cancel)


def show(experiment: Experiment, chosen: Sequence[Task], cluster: Cluster, order: Order) -> str:
    """The sbatch calls that :func:`submit` would make, and the scripts; nothing is written and nothing submitted."""
    paths = experiment.paths.submit
    live, notes = _live(paths)
    lines: list[str] = []

    def note(words: Sequence[str]) -> str:
        lines.append(queue.shown(words, len(lines) + 1))
        return f"$job{len(lines)}"

    indices = _indices(paths, experiment.config.run.replicates, write=False)
    _send(experiment, chosen, cluster, order, indices, live, note, lambda names: None)
    scripts = {str(paths.site): cluster.site(experiment.config.hardware.threads, Path.cwd())}
    scripts |= {str(path): path.read_text() for path in (file("slurm", name) for name in SCRIPTS)}
    return "\n".join([*notes, *lines, *(f"\n### {name}\n{text}" for name, text in scripts.items())])


def _live(paths: SubmitPaths) -> tuple[list[Element], list[str]]:
    """What is in the queue, as far as there is one, and why not."""
    try:
        return (queue.jobs(paths.run) if queue.available() else []), []
    except UserError as error:
        return [], [f"# {error}; as if nothing were in the queue"]


def _indices(paths: SubmitPaths, seeds: Sequence[int], write: bool = True) -> dict[int, int]:
    """seed -> its place in arrays, for good: the file only grows."""
    known = files.read_json(paths.seeds) if paths.seeds.exists() else []
    listed = [*known, *(seed for seed in seeds if seed not in known)]
    if write and listed != known:
        files.write_json(paths.seeds, listed)
    return {seed: index for index, seed in enumerate(listed)}


def _send(
    experiment: Experiment,
    chosen: Sequence[Task],
    cluster: Cluster,
    order: Order,
    indices: dict[int, int],
    jobs: Sequence[Element],
    sbatch: Callable[[Sequence[str]], str],
    scancel: Callable[[Sequence[str]], None],
) -> Sent:
    seeds = {index: seed for seed, index in indices.items()}
    rounds = [job for job in jobs if job.index is not None]
    live = {Task(job.round, seeds[job.index], job.kind): job.array for job in rounds if job.index in seeds}
    done = {task for task in experiment.tasks if task.done(experiment.paths)}
    every, blocked = arrays(chosen, done, live)
    now, later = _fitting(every, len(rounds), order)
    paths = experiment.paths.submit
    options = [*cluster.round(experiment.config.hardware), "--requeue", "--open-mode=append", FATAL]
    ids: list[str] = []
    for array in now:
        after = [name if isinstance(name, str) else ids[name] for name in array.after]
        ids.append(sbatch([*options, *_round(paths, array, indices, after, order.max_parallel)]))
    waiting = [job for job in jobs if job.index is None and job.state == "PENDING"]
    last = None
    if now or later or (not waiting and (live or not experiment.paths.report.exists())):
        earlier = sorted({job.array for job in rounds}, key=int)
        last = sbatch([*cluster.small(), FATAL, *_last(paths, [*earlier, *ids], order, later)])
        scancel([job.name for job in waiting])
    return Sent(dict(zip(ids, now, strict=True)), blocked, len(rounds), later, last)


def _fitting(every: Sequence[Array], live: int, order: Order) -> tuple[list[Array], list[int]]:
    if order.max_submitted is None:
        return list(every), []
    now, later = fitting(every, order.max_submitted - live - SPARE)
    if later and not now and not live:
        first = sum(len(array.seeds) for array in every if array.round == later[0])
        raise UserError(
            f"--max-submitted={order.max_submitted} is not valid; round {later[0]} alone has {first} elements, and two "
            f"more jobs follow it: it must be {first + SPARE} or more"
        )
    return now, later


def _log(paths: SubmitPaths, name: str) -> str:
    """In names of files Slurm replaces %j and the like, and a backslash would end that."""
    folder = os.fspath(paths.logs.resolve())
    if "\\" in folder or not folder.isprintable():
        raise UserError(
            f"--out={os.fspath(paths.run)!r} is not valid: Slurm writes no files where a name has such letters"
        )
    return f"--output={folder.replace('%', '%%')}/{name}.log"


def _title(paths: SubmitPaths) -> str:
    """What people see in squeue."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", paths.run.resolve().name)[:60]


def _round(
    paths: SubmitPaths, array: Array, indices: dict[int, int], after: Sequence[str], parallel: int | None
) -> list[str]:
    name = f"{array.arm}-r{array.round:02d}"
    limit = f"%{parallel}" if parallel else ""
    return [
        f"--job-name={_title(paths)}.{name}",
        f"--comment={queue.comment(paths.run, array.arm, array.round)}",
        f"--array={spans([indices[seed] for seed in array.seeds])}{limit}",
        *([f"--dependency=aftercorr:{':'.join(after)}"] if after else []),
        _log(paths, f"{name}-%A_%a"),
        os.fspath(file("slurm", "round.sbatch")),
        os.fspath(paths.run.resolve()),
        array.arm,
        str(array.round),
    ]


def _last(paths: SubmitPaths, after: Sequence[str], order: Order, later: Sequence[int]) -> list[str]:
    """The report, or the job that submits what did not fit; after all others, however they ended."""
    kind, script, words = ("chain", "chain.sh", order.rest(later)) if later else ("report", "report.sbatch", [])
    return [
        f"--job-name={_title(paths)}.{kind}",
        f"--comment={queue.comment(paths.run, kind)}",
        *([f"--dependency=afterany:{':'.join(after)}"] if after else []),
        _log(paths, f"{kind}-%j"),
        os.fspath(file("slurm", script)),
        os.fspath(paths.run.resolve()),
        *words,
    ]

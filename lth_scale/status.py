"""What a run folder proves: which rounds are done, which are being trained, which were interrupted."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.table import Table

from lth_scale import claims, files, settings
from lth_scale.checkpoint import Stored, candidates
from lth_scale.costs import clock_of
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.tasks import Task


def state(task: Task, paths: RunPaths) -> str:
    """done, stopped, running, interrupted, ready or waiting."""
    if task.done(paths):
        return "stopped" if task.stopped(paths) else "done"
    owner = claims.holder(task.paths(paths).claims)
    if owner is not None:
        return "running" if claims.alive(owner, task.paths(paths).claims) else "interrupted"
    return "waiting" if task.missing(paths) else "ready"


def progress(experiment: Experiment, task: Task) -> tuple[int, int] | None:
    """(The furthest step of the dense clock that is known of, the last one); None before the first is known."""
    paths = task.paths(experiment.paths)
    saved = [int(path.name[5:13]) for path in candidates(paths.checkpoints)[:1]]
    found = [*_measured(paths.folder / "attempts"), *saved]
    return (max(found), clock_of(experiment, task).stop) if found else None


def _measured(attempts: Path) -> list[int]:
    """The last step in the newest attempt's curves, if there is one."""
    with suppress(IndexError, ValueError, OSError):
        text = sorted(attempts.glob("*/metrics.csv"))[-1].read_text()
        return [int(text[: text.rindex("\n")].rpartition("\n")[2].partition(",")[0])]  # of whole lines
    return []


def owner(task: Task, paths: RunPaths) -> tuple[str, str]:
    """(The host of whoever works on a round, how long ago it was heard of in words)."""
    folder = task.paths(paths).claims
    found = claims.holder(folder)
    age = claims.silence(folder, found) if found else None
    return (str(found["host"]) if found else "", "" if age is None else f"heard of {ago(age)} ago")


def twins(task: Task, paths: RunPaths) -> str:
    """What is wrong with a done round that two attempts have ended: nothing, or that their bits differ."""
    every = candidates(task.paths(paths).checkpoints)
    finals = [path for path in every if path.name.split(".")[0] == every[0].name.split(".")[0]]
    try:
        for other in finals[1:]:
            if not _agree(finals[0], other):
                first, second = sorted(int(path.name.rpartition("_")[2]) for path in (finals[0], other))
                counts = files.read_json(task.paths(paths).result)["attempt"]
                return (
                    f"two attempts ended with different bits: attempt {first} and attempt {second}; the result is "
                    f"attempt {counts}'s"
                )
    except UserError as error:
        return str(error)
    return ""


def _agree(one: Path, other: Path) -> bool:
    """Whether two saved states are the same bits, by their checksums where they lie alike, else by reading them."""
    mine, theirs = Stored.open(one), Stored.open(other)
    if mine.manifest["ranges"] == theirs.manifest["ranges"]:
        return bool(mine.manifest["files"] == theirs.manifest["files"])
    return mine.digest() == theirs.digest()


def newest(root: Path) -> float | None:
    """The age in seconds of a run's newest file, by the file server's clock where a file can be made there."""
    times = []
    for path in root.rglob("*"):
        with suppress(OSError):  # gone meanwhile
            times.append(path.stat().st_mtime if path.is_file() else 0.0)
    now = time.time()
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=root, prefix=".now.", suffix=".tmp") as made:
        now = os.stat(made.name).st_mtime
    return max(0.0, now - max(times)) if times else None


def ago(seconds: float) -> str:
    """A time in words, in its largest sensible unit.

    >>> ago(12.3), ago(600), ago(10_000), ago(300_000)
    ('12 s', '10 min', '3 h', '3 days')
    """
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def open_experiment(root: Path) -> Experiment:
    """The experiment of a run folder; raises UserError when it is none."""
    paths = RunPaths(root)
    if not paths.config.exists():
        raise UserError(f"{root} is not a run folder: config.yaml is missing; `lth status` lists those under ./runs")
    return Experiment(settings.load(paths.config), paths)


def status(root: Path) -> Table:
    """One line per arm: its rounds by state."""
    experiment = open_experiment(root)
    return summary(root, [(task.arm, state(task, experiment.paths)) for task in experiment.tasks])


def summary(root: Path, found: Sequence[tuple[str, str]]) -> Table:
    """The same, of pairs of arm and state."""
    states = [*("done", "running", "interrupted", "ready", "waiting"), *sorted({state for _, state in found})]
    table = Table(title=str(root), title_justify="left")
    table.add_column("arm")
    for name in dict.fromkeys(states):
        table.add_column(name, justify="right")
    for arm in dict.fromkeys(arm for arm, _ in found):
        counts = [found.count((arm, name)) for name in dict.fromkeys(states)]
        table.add_row(arm, *(str(count or "") for count in counts))
    return table


def overview(folder: Path) -> Table:
    """The run folders below ``folder``."""
    table = Table(title=f"runs in {folder}", title_justify="left")
    for column in ("run", "data", "model", "done", "of"):
        table.add_column(column, justify="right" if column in ("done", "of") else "left")
    for config in sorted(folder.glob("*/config.yaml")):
        experiment = open_experiment(config.parent)
        done = sum(task.done(experiment.paths) for task in experiment.tasks)
        made = experiment.config
        table.add_row(config.parent.name, made.data.name, made.model.name, str(done), str(len(experiment.tasks)))
    return table

"""What a run folder proves: which rounds are done, which are being trained, which were interrupted."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from lth_scale import claims, settings
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.tasks import Task


def state(task: Task, paths: RunPaths) -> str:
    """done, running, interrupted, ready or waiting."""
    if task.done(paths):
        return "done"
    owner = claims.holder(task.paths(paths).claims)
    if owner is not None:
        return "running" if claims.alive(owner, task.paths(paths).claims) else "interrupted"
    return "ready" if task.needs is None or task.needs.done(paths) else "waiting"


def open_experiment(root: Path) -> Experiment:
    """The experiment of a run folder; raises UserError when it is none."""
    paths = RunPaths(root)
    if not paths.config.exists():
        raise UserError(f"{root} is not a run folder: config.yaml is missing; `lth status` lists those under ./runs")
    return Experiment(settings.load(paths.config), paths)


def status(root: Path) -> Table:
    """One line per arm: its rounds by state."""
    experiment = open_experiment(root)
    states = ["done", "running", "interrupted", "ready", "waiting"]
    table = Table(title=str(root), title_justify="left")
    table.add_column("arm")
    for name in states:
        table.add_column(name, justify="right")
    for arm in dict.fromkeys(task.arm for task in experiment.tasks):
        found = [state(task, experiment.paths) for task in experiment.tasks if task.arm == arm]
        table.add_row(arm, *(str(found.count(name) or "") for name in states))
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

"""Where a replicate's chain of tickets ends early: after ``run.patience`` of them in a row that no longer match."""

from __future__ import annotations

from lth_scale import files
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.tasks import Task


def ended(experiment: Experiment, task: Task) -> str:
    """Why a task is not worth doing any more; empty where it is.

    A ticket matches, here, when its accuracy on validation at the end of training is no more than
    ``report.tolerance`` points below that of its own replicate's dense network. Test is never read.
    """
    paths = experiment.paths
    stopped = [need.paths(paths).stopped for need in task.needs if need.stopped(paths)]
    if stopped:
        return str(files.read_json(stopped[0])["why"])
    patience, before = experiment.config.run.patience, Task(task.round - 1, task.seed, "ticket")
    if not patience or before not in task.needs or before.round < patience:
        return ""
    dense, *last = (
        _accuracy(experiment, task.seed, number) for number in (0, *range(task.round - patience, task.round))
    )
    tolerance = experiment.config.report.tolerance / 100
    if any(accuracy >= dense - tolerance for accuracy in last):
        return ""
    rounds = f"rounds {task.round - patience} to {before.round}" if patience > 1 else f"round {before.round}"
    return f"the tickets of {rounds} did not match on validation (run.patience={patience})"


def _accuracy(experiment: Experiment, seed: int, number: int) -> float:
    path = experiment.paths.round(seed, "ticket", number).result
    measured = files.read_json(path)["end"].get("validation")
    if measured is None:
        raise UserError(f"run.patience needs accuracies on validation, and {path} has none")
    return float(measured["accuracy"])

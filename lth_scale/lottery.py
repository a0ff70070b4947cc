"""The algorithm (Frankle & Carbin 2019, section 1; late rewinding: Frankle et al. 2020), all of it on this screen."""

from __future__ import annotations

from collections.abc import Iterable

from lth_scale import claims, files, pruning
from lth_scale.arms import Start
from lth_scale.checkpoint import State
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.results import result
from lth_scale.tasks import Task
from lth_scale.training import Job, agreed, first_rank, train_round, wait_for_all


def run(experiment: Experiment, tasks: Iterable[Task], job: str = "none") -> None:
    """Find the tickets, round after round, and train their controls."""
    for task in tasks:
        if not agreed(task.done(experiment.paths)):
            play(experiment, task, job)


def play(experiment: Experiment, task: Task, job: str = "none") -> None:
    """One round of one arm of one replicate: train what the mask left, prune, record.

    Raises UserError when the round it needs is not done, or another live process works on this one.
    """
    paths, following = task.paths(experiment.paths), experiment.paths.round(task.seed, "ticket", task.round + 1)
    if task.needs and not task.needs.done(experiment.paths):
        raise UserError(f"{task} is not ready: {task.needs} is not done")
    with claims.claimed(paths.claims, job, only=first_rank()) as attempt:
        if agreed(task.done(experiment.paths)):  # by another process, just now
            return
        if first_rank():
            _sweep(experiment, task)
            files.write_json(paths.provenance(attempt), experiment.provenance())
        start = experiment.start(task)  # the source state that arm and recipe name, and the mask
        trained = train_round(_job(experiment, task, start, attempt))  # goes on by itself if it was interrupted
        if first_rank():
            if task.arm == "ticket":
                next_mask(experiment, start.mask, trained.state).save(following.mask)
            elif start.mask != experiment.ticket_mask(task):
                start.mask.save(paths.mask)
            files.write_json(paths.result, result(experiment, task, start, trained, attempt))  # the done marker
    wait_for_all()


def _sweep(experiment: Experiment, task: Task) -> None:
    """Remove what earlier attempts that were killed have left half written, wherever this task alone writes."""
    paths, following = task.paths(experiment.paths), experiment.paths.round(task.seed, "ticket", task.round + 1)
    folders = [paths.folder, paths.checkpoints, *([following.folder] if task.arm == "ticket" else [])]
    for folder in folders if task.needs else [*folders, experiment.paths.rewind(task.seed, 0).parent]:
        files.remove_temporaries(folder)


def next_mask(experiment: Experiment, mask: Mask, state: State) -> Mask:
    """Remove the weights that the criterion ranks lowest among the survivors."""
    shards = [
        pruning.Shard(p.name, state.weights[p.name].flatten(), 0, p.numel, mask[p.name].flatten(), p.kind)
        for p in experiment.prunable
    ]
    kept = pruning.next_masks(shards, experiment.config.prune)
    return Mask({p.name: kept[p.name].reshape(p.shape) for p in experiment.prunable})


def _job(experiment: Experiment, task: Task, start: Start, attempt: int) -> Job:
    config, dense = experiment.config, task.round == 0
    return Job(
        model=experiment.model(0),
        dataset=experiment.dataset,
        data=config.data,
        train=config.train,
        hardware=config.hardware,
        start=start,
        reload=lambda: (again := experiment.start(task)).state.masked(again.mask),
        masked=not dense,
        streams={name: experiment.stream(task.seed, name) for name in ("order", "augment", "dropout")},
        paths=task.paths(experiment.paths),
        attempt=attempt,
        rewind_points=experiment.rewind_points(task.seed) if dense else {},
        break_at=experiment.k if dense and experiment.recipe.dense_break else None,
        keep_optimizer=experiment.recipe.optimizer == "T",
    )

"""The algorithm (Frankle & Carbin 2019, section 1; late rewinding: Frankle et al. 2020), all of it on this screen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lth_scale import claims, files, pruning, ranking, starting, structured, tracking, world
from lth_scale.arms import Start, arm_of
from lth_scale.checkpoint import Source
from lth_scale.ending import ended
from lth_scale.errors import NotReady, UserError
from lth_scale.experiment import Experiment
from lth_scale.interpolation import measure
from lth_scale.masks import Mask
from lth_scale.paths import RoundPaths
from lth_scale.results import result
from lth_scale.tasks import Task
from lth_scale.training import Job, train_round


def run(experiment: Experiment, tasks: Iterable[Task], job: str = "none") -> None:
    """Find the tickets, round after round, and train their controls."""
    for task in tasks:
        if not world.agreed(task.done(experiment.paths)):
            play(experiment, task, job)


def play(experiment: Experiment, task: Task, job: str = "none") -> None:
    """One round of one arm of one replicate: train what the mask left, prune, record; or measure between such rounds.

    Raises NotReady when the round it needs is not done, UserError when another live process works on it.
    """
    paths, following = task.paths(experiment.paths), experiment.paths.round(task.seed, "ticket", task.round + 1)
    if missing := world.agreed(task.missing(experiment.paths)):
        raise NotReady(f"{task} is not ready: {missing[0]} is not done")
    with ExitStack() as held:
        attempt = world.agreed(held.enter_context(claims.claimed(paths.claims, job, only=world.first())))
        if world.agreed(task.done(experiment.paths)):  # by another process, just now
            return
        if why := world.agreed(ended(experiment, task)):
            world.on_first(lambda: _finish(paths.stopped, {"why": why}))
            return
        world.on_first(lambda: _prepare(experiment, task, attempt))
        tracked = held.enter_context(tracking.tracked(experiment, task, attempt, world.first()))
        publish = partial(_publish, paths, attempt)
        if not task.trains:
            line = measure(experiment, task)
            tracked.measured(line)
            publish(lambda: _finish(paths.line, line))
            return
        start = starting.start(experiment, task)  # the source state that arm and recipe name, and the mask
        trained = train_round(_job(experiment, task, start, attempt, tracked))  # goes on if it was interrupted
        if task.arm == "ticket":
            after = next_mask(experiment, task, start.mask, trained.final)
            publish(lambda: after.save(following.mask))
        elif arm_of(task.arm).foreign or start.mask != experiment.ticket_mask(task):
            publish(lambda: start.mask.save(paths.mask))
        made = world.on_first(lambda: result(experiment, task, start, trained, attempt))
        tracked.finish(made)
        publish(lambda: _finish(paths.result, made))
        for scratch in (paths.start, paths.early_bird):
            world.on_first(partial(files.remove_folder, scratch))


def _publish(paths: RoundPaths, attempt: int, write: Callable[[], None]) -> None:
    """Write what others will build on, unless another attempt has taken the round over meanwhile."""

    def unless_overtaken() -> None:
        claims.check(paths.claims, attempt)
        write()

    world.on_first(unless_overtaken)


def _finish(marker: Path, made: dict[str, Any]) -> None:
    """The done marker, last of all. Two attempts can both come here; the second changes nothing."""
    if not files.create_json(marker, made):
        raise UserError(f"{marker} was written by another attempt meanwhile; this one's is given up")


def next_mask(experiment: Experiment, task: Task, mask: Mask, final: Source) -> Mask:
    """Remove the weights that the criterion ranks lowest among the survivors. All ranks share the work.

    Complete on the first rank only.
    """
    prune = experiment.config.prune
    goal = pruning.budgets(experiment.prunable, prune, task.round + 1)
    if pruning.scopes[prune.scope].channels:
        with ranking.ranked(experiment, task, mask, final, whole=True) as shards:
            return structured.next_mask(experiment.channels, experiment.prunable, shards, mask, prune, goal[0].kept)
    with ranking.ranked(experiment, task, mask, final) as shards:
        following = pruning.next_masks(shards, prune, goal, world.group())
        return Mask.assembled(mask.shapes, {shard.name: (shard.offset, following[shard.name]) for shard in shards})


def _prepare(experiment: Experiment, task: Task, attempt: int) -> None:
    """Remove what earlier attempts that were killed have left half written, wherever this task alone writes."""
    paths, following = task.paths(experiment.paths), experiment.paths.round(task.seed, "ticket", task.round + 1)
    folders = [paths.folder, paths.checkpoints, *([following.folder] if task.arm == "ticket" else [])]
    for folder in folders if not task.dense else [*folders, experiment.paths.rewind(task.seed, 0).parent]:
        files.remove_temporaries(folder)
    paths.result.unlink(missing_ok=True)  # of a round whose mask was lost
    files.write_json(paths.provenance(attempt), experiment.provenance())


def _job(experiment: Experiment, task: Task, start: Start, attempt: int, tracked: tracking.Tracked) -> Job:
    config, dense = experiment.config, task.dense
    early = dense and config.prune.early_bird > 0
    return Job(
        build=experiment.built,
        dataset=experiment.dataset,
        data=config.data,
        train=config.train,
        hardware=config.hardware,
        start=start,
        reload=lambda: (again := starting.start(experiment, task)).state.masked(again.mask),
        masked=task.round > 0,
        streams=experiment.streams(task),
        paths=task.paths(experiment.paths),
        attempt=attempt,
        told=tracked.rows,
        owned=lambda: claims.check(task.paths(experiment.paths).claims, attempt),
        rewind_points=experiment.rewind_points(task.seed) if dense else {},
        break_at=experiment.k if dense and experiment.recipe.dense_break else None,
        keep_optimizer=experiment.recipe.optimizer == "T",
        drawn=(lambda state: next_mask(experiment, task, start.mask, state)) if early else None,
        early_bird=config.prune.early_bird,
        groups=experiment.units if config.train.compact else (),
    )

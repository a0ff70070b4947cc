"""Where a round starts: the source state that its arm and the recipe name, opened on disk, and its mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from lth_scale import checkpoint, files, models, pruning, structured, transfer, world
from lth_scale.arms import Sources, Start, arm_of, label, split_draw
from lth_scale.checkpoint import Source, State, Stored
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.rewinding import Clock
from lth_scale.streams import derive
from lth_scale.tasks import Task
from lth_scale.tickets import Ticket


def start(experiment: Experiment, task: Task) -> Start:
    """The source state that the task's arm and the run's recipe name, on disk, and the mask. All ranks call it."""
    if task.dense:
        return Start(
            experiment.ticket_mask(task),
            _theta_0(experiment, task.seed),
            "initialisation",
            Clock.dense(experiment.total),
        )
    _require_theta_k(experiment, task.seed)
    before = experiment.paths.round(task.seed, "ticket", task.round - 1)
    begin, source = arm_of(task.arm).start, label(task.arm)
    assert begin, f"{task} trains nothing"
    from_elsewhere = _ticket_of(experiment, source, task) if source else None
    return begin(
        Sources(
            number=task.round,
            draw=split_draw(task.arm)[1],
            mask_seed=experiment.stream(task.seed, "mask"),
            mask=from_elsewhere.mask if from_elsewhere else experiment.ticket_mask(task),
            theta_k=lambda: Stored.open(experiment.paths.rewind(task.seed, experiment.k)),
            theta_T=lambda: checkpoint.final(before.checkpoints, before.result),
            initial=lambda i: (
                _stored(experiment, task.paths(experiment.paths).start, i)
                if experiment.sharded
                else experiment.initial(i)
            ),
            carried=lambda: _carried(experiment, task.seed, from_elsewhere),
            origin=source or "this run",
            recipe=experiment.recipe,
            permute=_permuting(experiment),
            small=lambda: _small(experiment, task),
            cost=lambda: _cost(experiment, task),
            total=experiment.total,
            fresh_noise=experiment.config.data.noise_per_round == "fresh",
        )
    )


def _permuting(experiment: Experiment) -> Callable[[Mask, structured.Draw], Mask]:
    """How a random mask of the same structure is made from a ticket's."""
    scope = pruning.scopes[experiment.config.prune.scope]
    if scope.channels:
        return partial(structured.permuted, experiment.channels)
    return partial(pruning.permuted, width=experiment.config.prune.group if scope.pattern else 0)


def _small(experiment: Experiment, task: Task) -> State:
    """Of the ticket's mask; drawn from the replicate's, the round's and the draw's own seed."""
    seed = derive(experiment.stream(task.seed, "mask"), "small", task.round, split_draw(task.arm)[1])
    mask, init = experiment.ticket_mask(task), experiment.config.model.init
    return structured.from_scratch(experiment.channels, mask, experiment.model(seed), init, seed)


def _cost(experiment: Experiment, task: Task) -> float:
    counts = experiment.ticket_mask(task).counts()
    dense, left = models.macs_left(experiment.skeleton, experiment.description.shape, counts)
    return left / dense


def _theta_0(experiment: Experiment, seed: int) -> Stored:
    return _stored(experiment, experiment.paths.rewind(seed, 0), experiment.stream(seed, "init"))


def _ticket_of(experiment: Experiment, source: str, task: Task) -> Ticket:
    return transfer.origin(experiment.config.transfer, source).ticket(task.seed, task.round, experiment.prunable)


def _carried(experiment: Experiment, seed: int, ticket: Ticket | None) -> Source:
    """theta_k from elsewhere, or this run's own, with the layers fresh that stay behind."""
    theta_k = ticket.states["theta_k"] if ticket else Stored.open(experiment.paths.rewind(seed, experiment.k))
    return transfer.Spliced(theta_k, _theta_0(experiment, seed), experiment.fresh)


def _stored(experiment: Experiment, where: Path, init: int) -> Stored:
    """A fresh initialisation, made by the first rank alone and read from disk: no rank needs the whole of it."""
    if not checkpoint.sound(where):
        world.on_first(lambda: _store(experiment, where, init))
    return Stored.open(where)


def _store(experiment: Experiment, where: Path, init: int) -> None:
    files.remove_folder(where)
    checkpoint.save_state(where, experiment.initial(init))


def _require_theta_k(experiment: Experiment, seed: int) -> None:
    """All ranks share the reading. Raises UserError when the rewind point is missing or damaged."""
    try:
        checkpoint.opened(experiment.paths.rewind(seed, experiment.k))
    except UserError as error:
        dense = experiment.paths.round(seed, "ticket", 0).result
        raise UserError(f"{error}; remove {dense} too, then the same command makes it anew") from None

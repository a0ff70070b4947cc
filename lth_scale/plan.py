"""``--plan``: what an experiment will do and cost, told before anything is trained and without the data at hand."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from lth_scale import models
from lth_scale.checkpoint import State
from lth_scale.experiment import Experiment
from lth_scale.rewinding import clock

STATES = {"sgd": 1, "nesterov": 1, "adam": 2, "adamw": 2}  # tensors of the optimizer for each parameter


def plan(experiment: Experiment) -> Iterator[RenderableType]:
    """The tables of the plan, one after the other."""
    yield _prunable(experiment)
    yield _fixed(experiment)
    yield _rounds(experiment)
    yield from _summary(experiment)


def _prunable(experiment: Experiment) -> Table:
    table = Table(title="prunable tensors", title_justify="left")
    for column in ("name", "shape", "kind", "weights", "removed per round"):
        table.add_column(column, justify="left" if column in ("name", "shape", "kind") else "right")
    prune = experiment.config.prune
    for tensor in experiment.prunable:
        rate = getattr(prune.rates, tensor.kind)
        shown = "never" if rate == 0 else f"{rate if rate is not None else prune.rate:.0%}"
        if prune.scope == "global" and rate != 0:
            shown += " of all"
        table.add_row(tensor.name, "x".join(map(str, tensor.shape)), tensor.kind, f"{tensor.numel:,}", shown)
    table.add_section()
    table.add_row("total", "", "", f"{sum(p.numel for p in experiment.prunable):,}", "")
    return table


def _fixed(experiment: Experiment) -> Table:
    rest = models.unprunable(experiment.model(0))
    table = Table(title="not prunable", title_justify="left")
    for column in ("why", "tensors", "weights", "such as"):
        table.add_column(column, justify="right" if column in ("tensors", "weights") else "left")
    for reason in dict.fromkeys(p.reason for p in rest):
        mine = [p for p in rest if p.reason == reason]
        table.add_row(reason, str(len(mine)), f"{sum(p.numel for p in mine):,}", mine[0].name)
    table.add_section()
    table.add_row("total", str(len(rest)), f"{sum(p.numel for p in rest):,}", "")
    return table


def _rounds(experiment: Experiment) -> Table:
    table = Table(title="rounds", title_justify="left")
    for column in ("round", "weights left", "density %", "steps", "epochs"):
        table.add_column(column, justify="right")
    for planned in experiment.plan:
        steps = experiment.total if planned.round == 0 else _later(experiment)
        epochs = f"{steps / experiment.steps_per_epoch:.2f}"
        table.add_row(str(planned.round), f"{planned.kept:,}", f"{100 * planned.density:.2f}", f"{steps:,}", epochs)
    return table


def _later(experiment: Experiment) -> int:
    return clock(experiment.recipe, experiment.k, experiment.total, 1, fresh_noise=False).steps


def _summary(experiment: Experiment) -> Iterator[str]:
    config, tasks = experiment.config, experiment.tasks
    yield f"data: {experiment.description}"
    yield (
        f"rewind point: step {experiment.k} of {experiment.total} (rewind.at={config.rewind.at}), recipe "
        f"{config.rewind.recipe}: {experiment.recipe}"
    )
    batch = config.train.batch_size
    yield f"micro-batch: {experiment.micro_batch} on {experiment.world} device(s) for a global batch of {batch}"
    later = sum(task.round > 0 for task in tasks)
    steps = (len(tasks) - later) * experiment.total + later * _later(experiment)
    arms, seeds = ", ".join(config.run.arms), ", ".join(map(str, config.run.replicates))
    yield f"tasks: {len(tasks)} ({arms} for seeds {seeds}), up to {steps:,} steps"
    end, more = _disk(experiment) / 1e6, _peak(experiment) / 1e6
    yield f"disk needed: about {end:,.0f} MB at the end, {more:,.1f} MB more while a round trains"


def _weights(experiment: Experiment) -> int:
    state: State = experiment.initial(0)
    return sum(t.numel() * t.element_size() for t in [*state.weights.values(), *state.buffers.values()])


def _disk(experiment: Experiment) -> float:
    """Finals of all tasks, rewind points of all seeds, masks."""
    size, per_state = _weights(experiment), 1 + STATES[experiment.config.train.optimizer]
    final = size * (per_state if experiment.recipe.optimizer == "T" else 1)
    points = size * (1 + per_state * (len(experiment.rewind_points(0)) - 1))
    seeds = len(experiment.config.run.replicates)
    masks = sum(p.numel for p in experiment.prunable) / 8
    return len(experiment.tasks) * (final + masks) + seeds * points


def _peak(experiment: Experiment) -> float:
    """A resumable checkpoint, and its successor before the older one goes."""
    return 2 * _weights(experiment) * (1 + STATES[experiment.config.train.optimizer])

"""``--plan``: what an experiment will do and cost, told before anything is trained and without the data at hand."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table

from lth_scale import costs, models, pruning
from lth_scale.config import Prune
from lth_scale.costs import Cost, Sizes
from lth_scale.experiment import Experiment
from lth_scale.rewinding import clock


def plan(experiment: Experiment, throughput: float | None = None) -> Iterator[RenderableType]:
    """The tables of the plan, one after the other; hours only for a throughput, in trained images/s and device."""
    yield _prunable(experiment)
    yield _fixed(experiment)
    yield _rounds(experiment)
    sizes = Sizes.of(experiment)
    yield from _summary(experiment, sizes)
    if throughput:
        yield from _costs(experiment, sizes, throughput)
    else:
        yield "GPU-hours: add --throughput N, the images that one device trains in a second"


def _prunable(experiment: Experiment) -> Table:
    table = Table(title="prunable tensors", title_justify="left")
    for column in ("name", "shape", "kind", "weights", "removed per round"):
        table.add_column(column, justify="left" if column in ("name", "shape", "kind") else "right")
    for tensor in experiment.prunable:
        shown = _removed(tensor, experiment.config.prune)
        table.add_row(tensor.name, "x".join(map(str, tensor.shape)), tensor.kind, f"{tensor.numel:,}", shown)
    table.add_section()
    table.add_row("total", "", "", f"{sum(p.numel for p in experiment.prunable):,}", "")
    return table


def _removed(tensor: models.Prunable, prune: Prune) -> str:
    """What a round takes from a tensor, in words."""
    rate, scope = getattr(prune.rates, tensor.kind), pruning.scopes[prune.scope]
    if rate == 0:
        return "never"
    if scope.pattern:
        shown = ", ".join(f"{m - n} of {m}" for n, m in prune.patterns)
        return f"{shown} inputs" if pruning.fits(tensor, prune) else f"never: inputs no multiple of {prune.group}"
    if prune.schedule != "rate":
        return f"by {prune.schedule}"
    return f"{prune.rate if rate is None else rate:.0%}" + ("" if scope.own_rates else " of all")


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


def _summary(experiment: Experiment, sizes: Sizes) -> Iterator[str]:
    config, tasks = experiment.config, experiment.tasks
    yield f"data: {experiment.description}"
    yield (
        f"rewind point: step {experiment.k} of {experiment.total} (rewind.at={config.rewind.at}), recipe "
        f"{config.rewind.recipe}: {experiment.recipe}"
    )
    batch = config.train.batch_size
    yield f"micro-batch: {experiment.micro_batch} on {experiment.world} device(s) for a global batch of {batch}"
    steps = sum(costs.clock_of(experiment, task).steps for task in tasks)
    arms, seeds = ", ".join(config.run.arms), ", ".join(map(str, config.run.replicates))
    yield f"tasks: {len(tasks)} ({arms} for seeds {seeds}), {steps:,} steps"
    stored = sum(cost.stored for cost in costs.by_arm(experiment, sizes).values())
    yield f"disk needed: about {stored / 1e6:,.0f} MB at the end, {sizes.peak / 1e6:,.1f} MB more while a round trains"


def _costs(experiment: Experiment, sizes: Sizes, throughput: float) -> Iterator[RenderableType]:
    arms, devices = costs.by_arm(experiment, sizes), experiment.world
    table = Table(title=f"GPU-hours at {throughput:,.0f} images/s and device", title_justify="left")
    heads = ("rounds", "images trained", "evaluated", "hours from step 0", "hours as planned", "saved", "disk MB")
    for column in ("arm", *heads):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, cost in arms.items():
        table.add_row(name, *_row(cost, throughput))
    table.add_section()
    total = sum(arms.values(), Cost())
    table.add_row("total", *_row(total, throughput))
    yield table
    saved = total.hours_from_zero(throughput) - total.hours(throughput)
    yield (
        f"late rewinding saves {saved:,.1f} of {total.hours_from_zero(throughput):,.1f} GPU-hours: later rounds of "
        f"tickets start at step {experiment.total - _later(experiment)} of {experiment.total}"
    )
    yield "an evaluated image counts a third of a trained one; evaluations at new minima of validation loss come on top"
    alone = costs.chain(experiment, sizes).hours(throughput) / devices
    yield f"one seed's tickets, one after the other: {alone:,.1f} hours on {devices} device(s)"


def _row(cost: Cost, throughput: float) -> tuple[str, ...]:
    before, now = cost.hours_from_zero(throughput), cost.hours(throughput)
    counts = (f"{count:,}" for count in (cost.rounds, cost.trained, cost.evaluated))
    return (*counts, *(f"{hours:,.1f}" for hours in (before, now, before - now)), f"{cost.stored / 1e6:,.0f}")

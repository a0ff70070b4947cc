"""What a finished round records: one JSON document, the round's done marker."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from lth_scale import models
from lth_scale.arms import Start
from lth_scale.checkpoint import Source, Stored
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.rewinding import Clock
from lth_scale.tasks import Task

if TYPE_CHECKING:
    from lth_scale.training import Trained
    from lth_scale.training.evaluation import Curves, Measure

SCHEMA = 1
FLOPS_PER_MAC = 2
CHUNK = 1 << 20  # weights looked at together


def result(experiment: Experiment, task: Task, start: Start, trained: Trained, attempt: int) -> dict[str, Any]:
    """The document; its schema is docs/run_folder.md's."""
    clock, batch = replace(start.clock, stop=trained.end.step), experiment.config.train.batch_size
    samples = clock.steps * batch
    return {
        "schema": SCHEMA,
        "seed": task.seed,
        "arm": task.arm,
        "round": task.round,
        "attempt": attempt,
        **_density(experiment, start.mask),
        "flags": flags(experiment, start.mask, trained.curves),
        "source": {
            "name": start.source,
            "sha256": start.state.masked(start.mask).digest(),
            "theta_k": _theta_hash(experiment, task),
            "verdict": "exact",  # the round would have refused to start otherwise
        },
        "recipe": {"name": experiment.config.rewind.recipe, **asdict(experiment.recipe)},
        "streams": experiment.streams(task),
        "clock": {
            "start": clock.start,
            "end": clock.stop,
            "steps": clock.steps,
            "samples": samples,
            "steps_per_epoch": experiment.steps_per_epoch,
            "noise": clock.noise,
        },
        **({"early_bird": asdict(trained.end)} if task.dense and experiment.config.prune.early_bird else {}),
        **_measures(trained.curves, clock, experiment.config.train.drops),
        "flops": _flops(experiment, start.mask, samples),
        "seconds": _seconds(trained.seconds, experiment.world),
        "bytes": {"stored": trained.final.bytes},
        "hashes": {"weights": trained.final.digest("weights"), "mask": start.mask.sha256()},
        "zeros": zeros(trained.final, start.mask),
        "pruned_by": experiment.config.prune.weights,
    }


def _density(experiment: Experiment, mask: Mask) -> dict[str, Any]:
    every = sum(p.numel() for p in experiment.skeleton.parameters())
    kinds = {p.name: p.kind for p in experiment.prunable}
    counts = mask.counts()
    return {
        "density": mask.density,
        "density_all": (mask.kept + every - mask.numel) / every,
        "tensors": {n: {"kept": kept, "numel": numel, "kind": kinds[n]} for n, (kept, numel) in counts.items()},
    }


def flags(experiment: Experiment, mask: Mask, curves: Curves) -> list[str]:
    """What a reader of the numbers should know: emptied tensors, no path from input to output, divergence.

    Of a model trained in shards, paths are not followed.
    """
    found = [f"empty: {name}" for name, (kept, _) in mask.counts().items() if kept == 0]
    whole = not experiment.sharded  # following all paths takes a copy of the whole model
    if whole and not models.connected(experiment.model(0), mask, experiment.description.shape):
        found.append("disconnected")
    if not all(math.isfinite(row.loss) for row in curves.rows):
        found.append("diverged")
    return found


def _measures(curves: Curves, clock: Clock, drops: bool) -> dict[str, Any]:
    lowest, start, stop = curves.minimum(), clock.start, clock.stop
    at = stop if lowest is None else lowest.step
    early = {
        "step": at,
        "steps_trained": at - start,
        "reached": lowest is not None and at != stop,
        **_row(curves.at(at).values()),
    }
    chosen = any(row.split == "validation" for row in curves.rows)  # else nothing was held out to choose by
    thirds = [{"step": step, **_row(curves.at(step).values())} for step in clock.thirds]
    return {
        "end": {"step": stop, **_row(curves.at(stop).values())},
        "early_stop": early if chosen else None,
        "thirds": thirds if drops else None,
    }


def _row(rows: Iterable[Measure]) -> dict[str, Any]:
    return {
        row.split: {
            "loss": row.loss if math.isfinite(row.loss) else None,
            "accuracy": row.accuracy,
            "samples": row.samples,
        }
        for row in rows
    }


def _flops(experiment: Experiment, mask: Mask, samples: int) -> dict[str, float]:
    dense, sparse = models.macs_left(experiment.skeleton, experiment.description.shape, mask.counts())
    per_mac = FLOPS_PER_MAC * models.FORWARD_AND_BACKWARD * samples
    return {"dense": per_mac * dense, "sparse": per_mac * sparse}


def _seconds(seconds: dict[str, float], world: int) -> dict[str, float]:
    train = seconds["total"] - seconds["evaluation"] - seconds["checkpoint"]
    return {
        "train": train,
        "evaluation": seconds["evaluation"],
        "checkpoint": seconds["checkpoint"],
        "device": seconds["total"] * world,
    }


def _theta_hash(experiment: Experiment, task: Task) -> str:
    return Stored.open(experiment.paths.rewind(task.seed, experiment.k)).digest()


def zeros(state: Source, mask: Mask) -> dict[str, int]:
    """The zero proof on the state as stored: pruned places, and at how many the weight is not +0.0, bit for bit."""
    wrong = 0
    for name, shape in mask.shapes.items():
        size = torch.Size(shape).numel()
        for start in range(0, size, CHUNK):
            stop = min(start + CHUNK, size)
            dropped = ~mask.range(name, start, stop)[:]
            bits = state.read(f"weights/{name}", start, stop).view(torch.int32).numpy()
            wrong += int((bits[dropped] != 0).sum())
    return {"pruned": mask.numel - mask.kept, "nonzero": wrong}

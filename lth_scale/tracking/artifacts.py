"""Tickets as W&B artifacts: theta_k once a replicate and every mask that a round leaves, as files of lth_scale.tickets.

An experiment has one artifact of each kind, GROUP.ticket and so on. Its versions carry the alias sSEED-rROUND: of a
ticket the round that trains it, of theta_T the round that ended with it, of theta_k round 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lth_scale import checkpoint, files, settings, tickets
from lth_scale.arms import arm_of, label
from lth_scale.checkpoint import Stored
from lth_scale.config import Config
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.tasks import Task
from lth_scale.tickets import Ticket
from lth_scale.tracking import segments, uploading
from lth_scale.tracking.identity import group, project
from lth_scale.transfer import fetching
from lth_scale.transfer.fetching import alias


@dataclass(frozen=True)
class Version:
    """One version of an artifact: its name, kind (W&B's type), alias, and what its file holds."""

    name: str
    kind: str
    alias: str
    ticket: Ticket


def log(run: Any, experiment: Experiment, task: Task, folder: Path, theta_k: str) -> None:
    """Make the files of what a round leaves and have W&B's run log them, but for what earlier attempts have logged.

    Args:
        run: the client's.
        experiment: of which
        task: is done.
        folder: the attempt's; the files stay there, to be uploaded from.
        theta_k: the hash of the rewind point, as result.json has it.
    """
    import wandb

    logged = {
        (a.name, a.digest) for path in uploading.logs(task.paths(experiment.paths)) for a in segments.logged(path)
    }
    for version in versions(experiment, task, theta_k):
        path = folder / segments.KEPT / f"{version.alias}.{version.kind}.safetensors"
        tickets.pack(version.ticket, path)
        told = {**version.ticket.provenance, "sha256": version.ticket.checksums}
        made = wandb.Artifact(version.name, version.kind, metadata=told)
        made.add_file(str(path.absolute()), f"{version.kind}.safetensors", policy="immutable", skip_cache=True)
        if (version.name, made.digest) in logged:
            path.unlink()
        else:
            run.log_artifact(made, aliases=["latest", version.alias])


def versions(experiment: Experiment, task: Task, theta_k: str) -> Iterator[Version]:
    """What a round of the ticket leaves: the next mask, of the dense round theta_k too, and theta_T where asked."""
    wanted, run = experiment.config.tracking.artifacts, experiment.paths
    if task.arm != "ticket" or wanted == "off":
        return
    mask, found = experiment.ticket_mask(task), list[tuple[str, int, Ticket]]()
    if task.dense:
        start = Stored.open(run.rewind(task.seed, experiment.k))
        found.append(("theta_k", 0, Ticket(mask, {"theta_k": start})))
    after = task.round + 1
    found.append(("ticket", after, Ticket(Mask.load(run.round(task.seed, "ticket", after).mask))))
    if wanted == "checkpoints" and (last := checkpoint.latest(task.paths(run).checkpoints)):
        found.append(("theta_T", task.round, Ticket(mask, {"theta_T": last[1]})))
    shared = {"from": "run", "run": group(run), "seed": task.seed, "k": experiment.k, "theta_k_of_run": theta_k}
    shared["data"] = files.read_json(run.provenance)["data"]
    for kind, number, ticket in found:
        about = {**shared, "round": number, "density": ticket.mask.density}
        whole = Ticket(ticket.mask, ticket.states, binding(experiment.config), about)
        yield Version(f"{group(run)}.{kind}", kind, alias(task.seed, number), whole)


def binding(config: Config) -> str:
    """The config as YAML, of the fields that results depend on, and where the data lies.

    What a resumed run may change is not in it, so that the same ticket is the same file.
    """
    tree: dict[str, Any] = {}
    for key, value in (settings.binding(config) | {"data.dir": config.data.dir}).items():
        *sections, field = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[field] = value
    return str(yaml.safe_dump(tree, sort_keys=False))


def uses(experiment: Experiment, task: Task) -> list[str]:
    """The artifacts that a round starts from, as NAME:ALIAS of its own project, or with ENTITY/PROJECT/ before it."""
    if experiment.config.tracking.artifacts == "off" or task.dense or not task.trains:
        return []
    if arm_of(task.arm).foreign:
        return _foreign(Path(experiment.config.transfer.places[label(task.arm)]), task)
    return _named(group(experiment.paths), task)


def _named(name: str, task: Task) -> list[str]:
    ticket = [f"{name}.ticket:{alias(task.seed, task.round)}"] if task.round else []
    return [f"{name}.theta_k:{alias(task.seed, 0)}", *ticket]


def _foreign(place: Path, task: Task) -> list[str]:
    """Of what came from W&B, and of a run folder whose own tickets are there."""
    if held := fetching.brought(place):
        return [held[key] for number in (0, task.round) if (key := alias(task.seed, number)) in held]
    source = RunPaths(place)
    if not source.tracking.exists():
        return []
    tracking = settings.load(source.config).tracking
    if tracking.artifacts == "off":
        return []
    where = f"{tracking.entity}/{project(tracking)}".lstrip("/")
    return [f"{where}/{name}" for name in _named(group(source), task)]

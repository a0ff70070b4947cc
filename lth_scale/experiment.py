"""One experiment in this process: config, run folder, data, and what follows from them."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lth_scale import data, models, provenance, pruning, settings, structured, transfer
from lth_scale import tasks as graph
from lth_scale.arms import arm_of, label, split_draw
from lth_scale.checkpoint import State
from lth_scale.config import Config
from lth_scale.duration import steps
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.rewinding import Recipe, recipes
from lth_scale.streams import derive
from lth_scale.tasks import Task

STREAMS = ("init", "order", "augment", "mask", "dropout")


@dataclass(frozen=True)
class Experiment:
    """A config and the folder that holds, or will hold, its run.

    Args:
        config: as given, or with the micro-batch fixed once the run is established.
        paths: the run folder.
    """

    config: Config
    paths: RunPaths

    @staticmethod
    def at(config: Config, out: Path) -> Experiment:
        """Check what can be checked without the data; raises UserError naming the field."""
        made = Experiment(replace(config, transfer=transfer.with_labels(config.transfer, out.parent)), RunPaths(out))
        made._check()
        return made

    def _check(self) -> None:
        if self.config.rewind.at == "auto":
            raise UserError(
                "rewind.at='auto' is for `lth run`, which decides it; then use the config.yaml of its folder"
            )
        k, total = self.k, self.total
        if total < 1:
            raise UserError(f"train.duration={self.config.train.duration!r} is {total} steps; it must be at least 1")
        for key, text in [("rewind.at", self.config.rewind.at), *(("rewind.keep", t) for t in self.config.rewind.keep)]:
            if (step := steps(text, self.steps_per_epoch, key)) >= total:
                raise UserError(f"{key}={text!r} is step {step}; it must come before the end of training, step {total}")
        for key, text in [
            ("warmup", self.config.train.warmup),
            *(("milestones", m) for m in self.config.train.milestones),
        ]:
            steps(text, self.steps_per_epoch, f"train.{key}")
        for key in ("eval_every", "checkpoint_every"):
            if steps(getattr(self.config.train, key), self.steps_per_epoch, f"train.{key}") < 1:
                raise UserError(f"train.{key}={getattr(self.config.train, key)!r} must be at least 1 step")
        assert k <= total
        pruning.criteria[self.config.prune.criterion]  # each raises for a name or a rate it does not know
        self.recipe, self.tasks, self.plan  # noqa: B018
        data.accumulation(self.config.train.batch_size, self.config.train.micro_batch, self.world)
        data.check(self.config.data, self.config.train.batch_size, self.world)
        self._check_parts()
        undone = [task for task in self.tasks if arm_of(task.arm).foreign and not task.done(self.paths)]
        wanted = [(label(task.arm), task.seed, task.round) for task in undone]
        transfer.check(self.config.transfer, wanted, self.skeleton, self.fresh)
        if not self.description.validation and self.config.run.patience:
            raise UserError(
                f"run.patience={self.config.run.patience} is not valid: {self.config.data.name} has no validation "
                "images to end a chain by; choose 0, or hold some out (data.held_out)"
            )
        if not self.description.validation and not self.config.train.drops:
            raise UserError(
                f"data.held_out=0 leaves {self.config.data.name} no validation images, by which the early-stopping "
                "iteration of train.schedule='constant' is found; hold some out, or choose multistep or cosine"
            )

    def _check_parts(self) -> None:
        """What two sections must agree on."""
        config = self.config
        if config.prune.weights == "ema" and not config.train.ema:
            raise UserError("prune.weights='ema' is not valid without averages; set train.ema, or choose raw")
        if config.train.ema and models.has_batchnorm(self.skeleton):
            raise UserError(
                f"train.ema={config.train.ema} is not valid with {config.model.name}: running statistics of BatchNorm "
                "belong to the weights, not to their averages; choose 0, or a model without BatchNorm"
            )
        if config.prune.early_bird:
            self._check_early_bird()
        if config.train.compact and models.has_dropout(self.skeleton):
            raise UserError(
                f"train.compact=True is not valid with {config.model.name}: its dropout would draw other noise for"
                " fewer units; choose false"
            )
        if pruning.scopes[config.prune.scope].channels:
            if config.transfer.layers != "all":
                raise UserError(
                    f"transfer.layers={config.transfer.layers!r} is not valid with prune.scope={config.prune.scope!r}: "
                    "channels that the output layer reads cannot be cut off from it; choose another scope"
                )
            structured.check(self.channels, self.prunable, config.prune, self.plan[-1])
        cpu = config.hardware.accelerator == "cpu" or not torch.cuda.is_available()
        if config.train.sync_batchnorm and cpu:
            raise UserError(
                "train.sync_batchnorm=True is not valid on a CPU: torch synchronises batch statistics on GPUs only; "
                "choose false, which averages the running statistics of all ranks after every step"
            )

    def _check_early_bird(self) -> None:
        for wrong, what in [
            (self.sharded, f"hardware.strategy={self.config.hardware.strategy!r}, under which no rank has all weights"),
            (pruning.criteria[self.config.prune.criterion].before, f"prune.criterion={self.config.prune.criterion!r}"),
            (self.config.run.patience, "run.patience, which compares with a dense network trained to the end"),
        ]:
            if wrong:
                raise UserError(f"prune.early_bird={self.config.prune.early_bird} is not valid with {what}; choose 0")

    @property
    def world(self) -> int:
        """Devices that share a global batch."""
        return self.config.hardware.devices * self.config.hardware.nodes

    @property
    def sharded(self) -> bool:
        """Whether a rank holds a part of the model only."""
        return self.world > 1 and self.config.hardware.sharded

    @property
    def micro_batch(self) -> int:
        """Samples of one forward on one device."""
        return self.config.train.micro_batch or max(1, self.config.train.batch_size // self.world)

    @cached_property
    def description(self) -> data.Description:
        """Sizes of the data set, without the data."""
        return data.describe(self.config.data)

    @cached_property
    def dataset(self) -> data.AnyDataset:
        """The data set, in memory or streamed."""
        return data.load(self.config.data)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch; the remainder is dropped."""
        return data.steps_per_epoch(self.description.train, self.config.train.batch_size)

    @property
    def total(self) -> int:
        """T, in steps."""
        return steps(self.config.train.duration, self.steps_per_epoch, "train.duration")

    @property
    def k(self) -> int:
        """The rewind point, in steps."""
        return steps(self.config.rewind.at, self.steps_per_epoch, "rewind.at")

    @property
    def recipe(self) -> Recipe:
        """What later rounds restore."""
        return recipes[self.config.rewind.recipe]

    @cached_property
    def prunable(self) -> list[models.Prunable]:
        """The tensors that are pruned; with tickets from elsewhere only those that come with them."""
        return transfer.carried_over(models.prunable(self.skeleton), self.config.transfer)

    @cached_property
    def fresh(self) -> frozenset[str]:
        """Parameters and buffers of the layers that do not come with a ticket from elsewhere."""
        return transfer.fresh(self.skeleton, models.prunable(self.skeleton), self.config.transfer)

    @cached_property
    def channels(self) -> list[models.channels.Group]:
        """The channels that can go together. Raises UserError for a model that cannot be followed."""
        return models.channels.groups(self.skeleton, self.description.shape)

    @cached_property
    def units(self) -> list[models.channels.Group]:
        """The same of any model, without those that cannot be followed."""
        return models.channels.groups(self.skeleton, self.description.shape, strict=False)

    @cached_property
    def plan(self) -> list[pruning.Planned]:
        """Exact densities of rounds 0..R."""
        return pruning.plan(self.prunable, self.config.prune)

    @cached_property
    def tasks(self) -> list[Task]:
        """All of the experiment's tasks."""
        return graph.tasks(self.config, self.plan[-1].round)

    def stream(self, seed: int, name: str) -> int:
        """The seed of a replicate's random stream: its own, unless ``seeds.NAME`` overrides it."""
        override = getattr(self.config.seeds, name)
        return derive(seed if override is None else override, name)

    def streams(self, task: Task) -> dict[str, int]:
        """The seeds of a task's streams: its replicate's, but for those of which each draw has its own."""
        varied, (arm, draw) = arm_of(task.arm).varied(self.config), split_draw(task.arm)
        shared = {name: self.stream(task.seed, name) for name in STREAMS}
        return shared | {name: derive(shared[name], arm, draw) for name in varied}

    def model(self, init: int) -> nn.Module:
        """A freshly initialised network."""
        return models.build(self.config.model, self.description.shape, self.description.classes, init)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The network without values."""
        return models.skeleton(self.config.model, self.description.shape, self.description.classes)

    def built(self) -> nn.Module:
        """A network whose values are about to be replaced; of one that is trained in shards no rank has the whole."""
        return copy.deepcopy(self.skeleton) if self.sharded else self.model(0)

    def initial(self, init: int) -> State:
        """The same as a state at step 0."""
        model = self.model(init)
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        return State(weights, {name: b.clone() for name, b in model.named_buffers()})

    def ticket_mask(self, task: Task) -> Mask:
        """The mask that the ticket's round before left, all ones for round 0.

        Raises UserError if it is missing, damaged or foreign.
        """
        if task.round == 0:
            return Mask.ones({p.name: p.shape for p in self.prunable})
        mask = Mask.load(self.paths.round(task.seed, "ticket", task.round).mask)
        mask.check_model({p.name: p.shape for p in self.prunable})
        return mask

    def rewind_points(self, seed: int) -> dict[int, Path]:
        """What the dense pass stores: step 0, k, and ``rewind.keep``."""
        kept = [steps(text, self.steps_per_epoch, "rewind.keep") for text in self.config.rewind.keep]
        return {step: self.paths.rewind(seed, step) for step in sorted({0, self.k, *kept})}

    def established(self) -> Experiment:
        """Make the run folder, or join it: the same config with its micro-batch fixed. Safe when many do it at once."""
        config = self.config
        if self.paths.config.exists():
            there = settings.load(self.paths.config)
            config = _same_micro_batch(self, there.train.micro_batch)
            if there.run.patience != config.run.patience:  # what it has ended may be worth doing now
                for marker in self.paths.root.glob("seed_*/*/round_*/stopped.json"):
                    marker.unlink(missing_ok=True)
        data.accumulation(config.train.batch_size, config.train.micro_batch, self.world)
        made = replace(self, config=replace(config, train=replace(config.train, micro_batch=self._fixed(config))))
        provenance.record(self.paths.provenance, self.dataset.checksum)
        settings.establish(self.paths.config, made.config)
        return made

    def provenance(self) -> dict[str, Any]:
        """Where and with what an attempt runs: what its bits may depend on beside the config."""
        return {**provenance.machine(), "hardware": asdict(self.config.hardware), "micro_batch": self.micro_batch}

    def _fixed(self, config: Config) -> int:
        return config.train.micro_batch or self.micro_batch


def _same_micro_batch(run: Experiment, there: int) -> Config:
    asked = run.config.train.micro_batch or there
    smaller = asked < there and not models.has_batchnorm(run.skeleton)
    if asked != there and not smaller:
        raise UserError(
            f"train.micro_batch={asked} differs from the run's {there}, which its results depend on "
            "(only a smaller one, and only for a model without BatchNorm, is allowed later)"
        )
    return replace(run.config, train=replace(run.config.train, micro_batch=asked))

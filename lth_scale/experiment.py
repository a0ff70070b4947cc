"""One experiment in this process: config, run folder, data, and what follows from them."""

from __future__ import annotations

import copy
import platform
import socket
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lth_scale import checkpoint, data, files, models, pruning, settings, world
from lth_scale import tasks as graph
from lth_scale.arms import Sources, Start, arms, split_draw
from lth_scale.checkpoint import State, Stored
from lth_scale.config import Config
from lth_scale.duration import steps
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RoundPaths, RunPaths
from lth_scale.rewinding import Clock, Recipe, recipes
from lth_scale.streams import derive
from lth_scale.tasks import Task


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
        made = Experiment(config, RunPaths(out))
        made._check()
        return made

    def _check(self) -> None:
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
        cpu = config.hardware.accelerator == "cpu" or not torch.cuda.is_available()
        if config.train.sync_batchnorm and cpu:
            raise UserError(
                "train.sync_batchnorm=True is not valid on a CPU: torch synchronises batch statistics on GPUs only; "
                "choose false, which averages the running statistics of all ranks after every step"
            )

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
        """The tensors that are pruned."""
        return models.prunable(self.skeleton)

    @cached_property
    def plan(self) -> list[pruning.Planned]:
        """Exact densities of rounds 0..R."""
        return pruning.plan([(p.name, p.numel, p.kind) for p in self.prunable], self.config.prune)

    @cached_property
    def tasks(self) -> list[Task]:
        """All of the experiment's tasks."""
        return graph.tasks(self.config.run, self.config.reinit, self.plan[-1].round)

    def stream(self, seed: int, name: str) -> int:
        """The seed of a replicate's random stream: its own, unless ``seeds.NAME`` overrides it."""
        override = getattr(self.config.seeds, name)
        return derive(seed if override is None else override, name)

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

    def start(self, task: Task) -> Start:
        """The source state that the task's arm and the run's recipe name, on disk, and the mask. All ranks call it."""
        if task.round == 0:
            mask = Mask.ones({p.name: p.shape for p in self.prunable})
            state = self._stored(self.paths.rewind(task.seed, 0), self.stream(task.seed, "init"))
            return Start(mask, state, "initialisation", Clock.dense(self.total))
        self._require_theta_k(task.seed)
        arm, draw = split_draw(task.arm)
        before = self.paths.round(task.seed, "ticket", task.round - 1)
        mask = self.ticket_mask(task)
        return arms[arm].start(
            Sources(
                number=task.round,
                draw=draw,
                mask_seed=self.stream(task.seed, "mask"),
                mask=mask,
                theta_k=lambda: Stored.open(self.paths.rewind(task.seed, self.k)),
                theta_T=lambda: _final(before),
                initial=lambda i: self._stored(task.paths(self.paths).start, i) if self.sharded else self.initial(i),
                recipe=self.recipe,
                total=self.total,
                fresh_noise=self.config.data.noise_per_round == "fresh",
            )
        )

    def _stored(self, where: Path, init: int) -> Stored:
        """A fresh initialisation, made by the first rank alone and read from disk: no rank needs the whole of it."""
        if not checkpoint.sound(where):
            world.on_first(lambda: self._store(where, init))
        return Stored.open(where)

    def _store(self, where: Path, init: int) -> None:
        files.remove_folder(where)
        checkpoint.save_state(where, self.initial(init))

    def _require_theta_k(self, seed: int) -> None:
        """All ranks share the reading. Raises UserError when the rewind point is missing or damaged."""
        try:
            checkpoint.opened(self.paths.rewind(seed, self.k))
        except UserError as error:
            dense = self.paths.round(seed, "ticket", 0).result
            raise UserError(f"{error}; remove {dense} too, then the same command makes it anew") from None

    def ticket_mask(self, task: Task) -> Mask:
        """The mask that the ticket's round before left; raises UserError if it is missing, damaged or foreign."""
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
            config = _same_micro_batch(self, settings.load(self.paths.config).train.micro_batch)
        data.accumulation(config.train.batch_size, config.train.micro_batch, self.world)
        made = replace(self, config=replace(config, train=replace(config.train, micro_batch=self._fixed(config))))
        _record(self.paths.provenance, self.dataset.checksum)
        settings.establish(self.paths.config, made.config)
        return made

    def provenance(self) -> dict[str, Any]:
        """Where and with what an attempt runs: what its bits may depend on beside the config."""
        return {**machine(), "hardware": asdict(self.config.hardware), "micro_batch": self.micro_batch}

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


def _final(paths: RoundPaths) -> Stored:
    found = checkpoint.latest(paths.checkpoints)
    if found is None:
        raise UserError(f"{paths.checkpoints} holds no sound checkpoint; remove {paths.result} to train it anew")
    return found[1]


def machine() -> dict[str, str | int | float]:
    """Where and with what an attempt runs."""
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _record(path: Path, checksum: str) -> None:
    if not path.exists():
        files.write_json(path, {"data": checksum, **machine()})
        return
    held = files.read_json(path)
    if not isinstance(held, dict) or not isinstance(there := held.get("data"), str):
        raise UserError(f"{path} is damaged (it lacks data); remove it to have it made anew")
    if there != checksum:
        raise UserError(
            f"data.dir holds other images (checksum {checksum[:12]}) than the run was made with ({there[:12]})"
        )

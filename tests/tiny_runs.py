"""Whole experiments of a second on the digits, and a spy on what their rounds really do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from lth_scale import checkpoint, files, lottery
from lth_scale import config as sections
from lth_scale.checkpoint import Source, State
from lth_scale.config import Config
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.models import models
from lth_scale.shards import ReplicatedShards, Shards, capture
from lth_scale.tasks import Task
from lth_scale.training import callbacks
from lth_scale.training.module import Classifier

EPOCH = 10  # steps
T = 24
K = 7  # in the middle of an epoch
POINTS = {"0": 0, "7it": 7, "1ep": 10}

BASE: dict[str, dict[str, Any]] = {
    "model": {"hidden": (20, 10)},
    "train": {"duration": f"{T}it", "batch_size": 100, "eval_every": "8it", "lr": 0.05},
    "prune": {"rounds": 2},
    "run": {"seeds": (0,), "arms": ("ticket",)},
    "hardware": {"accelerator": "cpu"},
}
RESNET = {"name": "resnet8", "width": 4}
ONCE = {"eval_every": f"{T}it"}  # evaluating takes a small ResNet longer than training


def tiny(**changes: dict[str, Any]) -> Config:
    """The base config with fields of its sections changed: ``tiny(train={"lr": 1.0})``."""
    made = {name: BASE.get(name, {}) | changes.get(name, {}) for name in BASE.keys() | changes.keys()}
    return Config(**{name: getattr(sections, name.capitalize())(**fields) for name, fields in made.items()})


def established(config: Config, out: Path) -> Experiment:
    return Experiment.at(config, out).established()


def play(config: Config, out: Path, wanted: Callable[[Task], bool] = lambda _: True) -> Experiment:
    """Run those of an experiment's tasks that are wanted."""
    run = established(config, out)
    lottery.run(run, [task for task in run.tasks if wanted(task)])
    return run


def dense(task: Task) -> bool:
    return task.round == 0


def result(run: Experiment, arm: str, number: int, seed: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.paths.round(seed, arm, number).result.read_text())
    return found


def final(run: Experiment, arm: str, number: int, seed: int = 0) -> State:
    """The state at the end of a round."""
    found = checkpoint.latest(run.paths.round(seed, arm, number).checkpoints)
    assert found is not None
    return found[1].whole()


def captured(module: nn.Module, optimizers: Sequence[Optimizer], step: int) -> State:
    """A copy of everything that a module and its optimizers hold."""
    return capture(ReplicatedShards(module, optimizers), step)


def theta(run: Experiment, step: int, seed: int = 0) -> State:
    return checkpoint.load_state(run.paths.rewind(seed, step))


def ticket_mask(run: Experiment, number: int, seed: int = 0) -> Mask:
    return Mask.load(run.paths.round(seed, "ticket", number).mask)


def used_mask(run: Experiment, arm: str, number: int, seed: int = 0) -> Mask:
    """The mask that an arm's round trained under: its own if it wrote one, else the ticket's."""
    own = run.paths.round(seed, arm, number).mask
    return Mask.load(own) if own.exists() else ticket_mask(run, number, seed)


def rows(run: Experiment, arm: str, number: int, seed: int = 0) -> list[str]:
    """The lines of the round's metrics.csv that counts, without the header."""
    attempt = result(run, arm, number, seed)["attempt"]
    return run.paths.round(seed, arm, number).metrics(attempt).read_text().splitlines()[1:]


def digest(images: torch.Tensor, labels: torch.Tensor) -> str:
    return files.sha256_tensors({"images": images, "labels": labels})


@dataclass
class Fit:
    """What one round really did.

    Args:
        start: the live model's state before the first step.
        rates: learning rates of every optimizer step, one tuple over the parameter groups each.
        inputs: a digest of every micro-batch that the model saw.
    """

    model: nn.Module
    start: State
    rates: list[tuple[float, ...]] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)


@dataclass
class Spy:
    """All fits so far; ``after`` is called behind every optimizer step, when the masks have been applied."""

    fits: list[Fit] = field(default_factory=list)
    after: Callable[[Fit, Optimizer], None] = lambda fit, optimizer: None


@contextmanager
def spying() -> Iterator[Spy]:
    """Record every fit inside; nothing is replaced, only looked at."""
    spy = Spy()
    prove, training_step = callbacks.prove_start, Classifier.training_step

    def proved(shards: Shards, expected: Source) -> None:
        prove(shards, expected)
        spy.fits.append(Fit(shards.module, capture(shards, expected.step)))

    def stepped(self: Classifier, batch: Any, index: int) -> torch.Tensor:
        spy.fits[-1].inputs.append(digest(*batch))
        return training_step(self, batch, index)

    def used(optimizer: Optimizer, *_: Any) -> None:
        spy.fits[-1].rates.append(tuple(group["lr"] for group in optimizer.param_groups))
        spy.after(spy.fits[-1], optimizer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "prove_start", proved)
        patch.setattr(Classifier, "training_step", stepped)
        handle = register_optimizer_step_post_hook(used)
        try:
            yield spy
        finally:
            handle.remove()


@pytest.fixture
def spy() -> Iterator[Spy]:
    with spying() as found:
        yield found


class DropoutNet(nn.Module):
    """A little network with noise in its forward pass."""

    output_layer = "output"

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.fc1, self.drop, self.output = nn.Linear(inputs, 20), nn.Dropout(0.3), nn.Linear(20, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(self.drop(torch.relu(self.fc1(images.flatten(1)))))
        return logits


@pytest.fixture
def dropout_net() -> Iterator[str]:
    """The name of a registered model with dropout; gone afterwards, so that tests over the registry see only ours."""
    models.register("dropout_net")(lambda config, shape, classes: DropoutNet(shape[0] * shape[1] * shape[2], classes))
    yield "dropout_net"
    del models._entries["dropout_net"]

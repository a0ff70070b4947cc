"""What an experiment costs: GPU-hours at a throughput that the user states, and bytes on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from lth_scale.arms import Sources, arms, split_draw
from lth_scale.checkpoint import State
from lth_scale.duration import steps
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.models import FORWARD_AND_BACKWARD
from lth_scale.rewinding import Clock
from lth_scale.tasks import Task

STATES = {"sgd": 1, "nesterov": 1, "adam": 2, "adamw": 2}  # tensors of the optimizer for each parameter


@dataclass(frozen=True)
class Cost:
    """Of one or more rounds.

    Args:
        rounds: how many.
        trained: images that training sees.
        evaluated: images that evaluation sees; those at new minima of validation loss, unknown before, are not in it.
        whole: ``work`` had every round begun at step 0.
        stored: bytes that stay on disk.
    """

    rounds: int = 0
    trained: int = 0
    evaluated: int = 0
    whole: int = 0
    stored: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, key) + getattr(other, key) for key in self.__dataclass_fields__))

    @property
    def work(self) -> int:
        """In forward passes of one image."""
        return FORWARD_AND_BACKWARD * self.trained + self.evaluated

    def hours(self, throughput: float) -> float:
        """GPU-hours at so many trained images per second and device, whatever the number of devices."""
        return _hours(self.work, throughput)

    def hours_from_zero(self, throughput: float) -> float:
        """The same, had every round begun at step 0."""
        return _hours(self.whole, throughput)


def _hours(work: int, throughput: float) -> float:
    return work / FORWARD_AND_BACKWARD / throughput / 3600


def clock_of(experiment: Experiment, task: Task) -> Clock:
    """Which steps a task trains: an arm is a pure function of its sources, so asked with empty states it tells."""
    if task.round == 0:
        return Clock.dense(experiment.total)
    arm, draw = split_draw(task.arm)
    start = arms[arm].start(
        Sources(
            number=task.round,
            draw=draw,
            mask_seed=0,
            mask=Mask({}),
            theta_k=lambda: State({}, step=experiment.k),
            theta_T=lambda: State({}, step=experiment.total),
            initial=lambda seed: State({}),
            recipe=experiment.recipe,
            total=experiment.total,
            fresh_noise=False,
        )
    )
    return start.clock


def by_arm(experiment: Experiment, sizes: Sizes) -> dict[str, Cost]:
    """The dense rounds, then each arm with all its draws and seeds."""
    found: dict[str, Cost] = {}
    for task in experiment.tasks:
        name = split_draw(task.arm)[0] if task.round else "dense"
        found[name] = found.get(name, Cost()) + _cost(experiment, task, sizes)
    return found


def chain(experiment: Experiment, sizes: Sizes) -> Cost:
    """The dense round and the tickets of one seed: what has to be trained one after the other."""
    seed = experiment.config.run.replicates[0]
    tickets = [task for task in experiment.tasks if task.arm == "ticket" and task.seed == seed]
    return sum((_cost(experiment, task, sizes) for task in tickets), Cost())


def _cost(experiment: Experiment, task: Task, sizes: Sizes) -> Cost:
    clock = clock_of(experiment, task)
    planned, whole = _images(experiment, clock), _images(experiment, replace(clock, start=0))
    stored = sizes.final + sizes.mask + (0 if task.round else sizes.points)
    return replace(planned, rounds=1, whole=whole.work, stored=stored)


def _images(experiment: Experiment, clock: Clock) -> Cost:
    return Cost(trained=clock.steps * experiment.config.train.batch_size, evaluated=_evaluated(experiment, clock))


def _evaluated(experiment: Experiment, clock: Clock) -> int:
    """Validation (test, where nothing is held out) on the grid and at marks; there test and a part of train too."""
    from lth_scale.training.evaluation import TRAIN_SAMPLES  # brings Lightning with it, seconds to import

    train, known = experiment.config.train, experiment.description
    every = steps(train.eval_every, experiment.steps_per_epoch, "train.eval_every")
    marks = clock.marks(train.drops)
    grid = clock.stop // every - clock.start // every
    extra = sum(1 for mark in marks if mark % every)
    at_marks = min(TRAIN_SAMPLES, known.train) + (known.test if known.validation else 0)
    return (grid + extra) * (known.validation or known.test) + len(marks) * at_marks


@dataclass(frozen=True)
class Sizes:
    """Bytes of what a run keeps.

    Args:
        final: the state at the end of a round.
        mask: one mask.
        points: the rewind points of a dense pass.
        peak: a resumable checkpoint while a round trains, and its successor before the older one goes.
    """

    final: float
    mask: float
    points: float
    peak: float

    @staticmethod
    def of(experiment: Experiment) -> Sizes:
        """Without training or data."""
        state = experiment.initial(0)
        size = _bytes([*state.weights.values(), *state.buffers.values()])
        moments = STATES[experiment.config.train.optimizer] * _bytes(state.weights.values())
        return Sizes(
            final=size + (moments if experiment.recipe.optimizer == "T" else 0),
            mask=sum(p.numel for p in experiment.prunable) / 8,
            points=size + (len(experiment.rewind_points(0)) - 1) * (size + moments),
            peak=2 * (size + moments),
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

"""What an experiment costs: GPU-hours at a throughput that the user states, and bytes on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from lth_scale.arms import Sources, arm_of, split_draw
from lth_scale.arms.lines import POINTS
from lth_scale.checkpoint import State
from lth_scale.duration import steps
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.models import FORWARD_AND_BACKWARD, has_batchnorm
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
    begin = arm_of(task.arm).start
    if begin is None:
        return Clock(experiment.total, experiment.total, None, 0)
    if task.dense:
        return Clock.dense(experiment.total)
    start = begin(
        Sources(
            number=task.round,
            draw=split_draw(task.arm)[1],
            mask_seed=0,
            mask=Mask({}),
            theta_k=lambda: State({}, step=experiment.k),
            theta_T=lambda: State({}, step=experiment.total),
            initial=lambda seed: State({}),
            carried=lambda: State({}),
            origin="",
            permute=lambda mask, draw: mask,
            small=lambda: State({}),
            cost=lambda: experiment.plan[task.round].density,
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
        name = "dense" if task.dense else split_draw(task.arm)[0]
        found[name] = found.get(name, Cost()) + _cost(experiment, task, sizes)
    return found


def of_tasks(experiment: Experiment, tasks: Iterable[Task], sizes: Sizes) -> Cost:
    """Of some tasks together."""
    return sum((_cost(experiment, task, sizes) for task in tasks), Cost())


def chain(experiment: Experiment, sizes: Sizes) -> Cost:
    """The dense round and the tickets of one seed: what has to be trained one after the other."""
    seed = experiment.config.run.replicates[0]
    tickets = [task for task in experiment.tasks if task.arm == "ticket" and task.seed == seed]
    return of_tasks(experiment, tickets, sizes)


def _cost(experiment: Experiment, task: Task, sizes: Sizes) -> Cost:
    if not task.trains:
        return _line(experiment)
    clock = clock_of(experiment, task)
    planned, whole = _images(experiment, clock), _images(experiment, replace(clock, start=0))
    stored = sizes.final + sizes.mask + (sizes.points if task.dense else 0)
    return replace(planned, rounds=1, whole=whole.work, stored=stored)


def _line(experiment: Experiment) -> Cost:
    """What is measured between two networks; with BatchNorm twice, and once more for its statistics."""
    from lth_scale.training.evaluation import TRAIN_SAMPLES

    known = experiment.description
    train = min(TRAIN_SAMPLES, known.train)
    once = train + known.validation + known.test
    seen = 2 * once + train if has_batchnorm(experiment.skeleton) else once
    return Cost(rounds=1, evaluated=POINTS * seen, whole=POINTS * seen)


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

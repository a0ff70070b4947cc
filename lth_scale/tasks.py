"""The task graph of an experiment, pure: which rounds there are and what each needs. Every launcher uses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lth_scale.arms import Place, arm_of, arms, beside, drawn, split_draw
from lth_scale.config import Config
from lth_scale.errors import UserError, unknown
from lth_scale.files import filled
from lth_scale.paths import RoundPaths, RunPaths
from lth_scale.pruning import scopes
from lth_scale.ranges import expand


@dataclass(frozen=True, order=True)
class Task:
    """One round of one arm of one replicate. Ordered by round first, so that all replicates advance together.

    Args:
        round: 0 (of the ticket: the dense round) to R.
        seed: the replicate.
        arm: the arm's folder: its name, ``.LABEL`` where there are several of the kind, ``-N`` for further draws.
    """

    round: int
    seed: int
    arm: str

    def __str__(self) -> str:
        return f"seed={self.seed} arm={self.arm} round={self.round}"

    @property
    def needs(self) -> tuple[Task, ...]:
        """What must be done before, by its arm's word; of most the ticket's round before."""
        return tuple(Task(number, self.seed, arm) for arm, number in arm_of(self.arm).needs(self.arm, self.round))

    @property
    def dense(self) -> bool:
        """Whether it is the dense round, which leaves the rewind points behind."""
        return (self.arm, self.round) == ("ticket", 0)

    @property
    def trains(self) -> bool:
        """Whether it trains; else it measures what others have left."""
        return arm_of(self.arm).start is not None

    def paths(self, run: RunPaths) -> RoundPaths:
        """The task's files."""
        return run.round(self.seed, self.arm, self.round)

    def marker(self, run: RunPaths) -> Path:
        """What is written last, and says that it is done."""
        return self.paths(run).result if self.trains else self.paths(run).line

    def done(self, run: RunPaths) -> bool:
        """Whether its done marker is there, and the mask that a ticket leaves for the next round."""
        following = Task(self.round + 1, self.seed, self.arm).paths(run).mask
        finished = filled(self.marker(run)) and (self.arm != "ticket" or following.exists())
        return finished or self.stopped(run)

    def stopped(self, run: RunPaths) -> bool:
        """Whether it was left out, as its chain has ended; whatever needs it is left out too."""
        return filled(self.paths(run).stopped)

    def missing(self, run: RunPaths) -> list[Task]:
        """What it needs and what is not done."""
        return [need for need in self.needs if not need.done(run)]

    @property
    def place(self) -> tuple[int, int, bool]:
        """Sorted by it, tasks come after what they need."""
        return self.round, self._level, self.arm != "ticket"

    @property
    def _level(self) -> int:
        """How many tasks of its round come before it."""
        return max((need._level + 1 for need in self.needs if need.round == self.round), default=0)


def tasks(config: Config, rounds: int) -> list[Task]:
    """Every task of an experiment, in an order that respects what each needs. Controls are leaves.

    Raises UserError when an arm is unknown, or when ``run.arms`` lacks the ticket.
    """
    run = config.run
    for arm in run.arms:
        arms[arm]
    if "ticket" not in run.arms:
        raise UserError(f"run.arms={list(run.arms)} lacks 'ticket', whose masks all other arms use; add it")
    _check_foreign(config)
    _check_structured(config)
    wanted = dict.fromkeys([("ticket", 0), *_listed(config, rounds), *_beside(config, rounds)])
    found = [Task(number, seed, folder) for folder, number in wanted for seed in run.replicates]
    return sorted(found, key=lambda task: (*task.place, task.seed, task.arm))


def _check_foreign(config: Config) -> None:
    foreign = [arm for arm in config.run.arms if arms[arm].foreign]
    if config.transfer.sources and config.transfer.layers == "all":
        raise UserError(
            "transfer.layers='all' is not valid with transfer.sources: an output layer belongs to its classes; choose "
            "body, or hidden to leave the input layer behind too"
        )
    if foreign and not config.transfer.sources:
        raise UserError(f"run.arms: {', '.join(foreign)} train tickets from elsewhere; set transfer.sources")
    if config.transfer.sources and not foreign:
        known = ", ".join(arm for arm in arms if arms[arm].foreign)
        raise UserError(f"transfer.sources is set, but run.arms={list(config.run.arms)} has none of: {known}")


def _check_structured(config: Config) -> None:
    structured = [arm for arm in config.run.arms if arms[arm].structured]
    if structured and not scopes[config.prune.scope].channels:
        usable = ", ".join(scope for scope in scopes if scopes[scope].channels)
        raise UserError(
            f"run.arms: {', '.join(structured)} train the small network that a channel ticket is; "
            f"prune.scope={config.prune.scope!r} leaves none, choose from: {usable}"
        )


def _listed(config: Config, rounds: int) -> Iterator[Place]:
    """What ``run.arms`` asks for."""
    every = range(1, rounds + 1)
    for arm in config.run.arms:
        foreign = arms[arm].foreign
        numbers = expand(config.transfer.rounds) or every if foreign or arm == "own" else every
        folders = [f"{arm}.{label}" for label in config.transfer.places] if foreign else [arm]
        for folder in folders:
            for draw in drawn(folder, config.reinit.draws if arms[arm].draws else 1):
                yield from ((draw, number) for number in (numbers[:1] if arms[arm].rounds == "one" else numbers))


def _beside(config: Config, rounds: int) -> Iterator[Place]:
    """What other sections ask for."""
    for arm in beside:
        yield from beside[arm].wanted(config, rounds)


def select(every: Sequence[Task], only: Iterable[str]) -> list[Task]:
    """The tasks that ``seed=0,2 arm=ticket round=3-7`` names; raises UserError on an unknown key or on none at all."""
    chosen = list(every)
    for word in only:
        key, _, text = word.partition("=")
        if key not in ("seed", "arm", "round") or not text:
            raise unknown("--only", word, ["seed=0,2", "arm=ticket,random", "round=3-7"])
        chosen = [task for task in chosen if _matches(task, key, text)]
        if not chosen:
            raise UserError(f"--only {word} selects none of the run's {len(every)} tasks ({_span(every)})")
    return chosen


def _matches(task: Task, key: str, text: str) -> bool:
    if key == "arm":
        return task.arm in text.split(",") or split_draw(task.arm)[0] in text.split(",")
    try:
        return getattr(task, key) in expand(text)
    except ValueError:
        raise UserError(f"--only {key}={text!r} is not valid; write numbers or ranges such as 0-4,7") from None


def _span(every: Sequence[Task]) -> str:
    seeds = sorted({task.seed for task in every})
    names = sorted({task.arm for task in every})
    return f"seed={','.join(map(str, seeds))} arm={','.join(names)} round=0-{max(task.round for task in every)}"

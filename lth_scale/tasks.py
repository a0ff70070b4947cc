"""The task graph of an experiment, pure: which rounds there are and what each needs. Every launcher uses it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lth_scale.arms import arms, split_draw
from lth_scale.config import Reinit, Run
from lth_scale.errors import UserError, unknown
from lth_scale.files import filled
from lth_scale.paths import RoundPaths, RunPaths
from lth_scale.ranges import expand


@dataclass(frozen=True, order=True)
class Task:
    """One round of one arm of one replicate. Ordered by round first, so that all replicates advance together.

    Args:
        round: 0 (the dense round, ticket only) to R.
        seed: the replicate.
        arm: the arm's folder: its name, with ``-N`` for further draws.
    """

    round: int
    seed: int
    arm: str

    def __str__(self) -> str:
        return f"seed={self.seed} arm={self.arm} round={self.round}"

    @property
    def needs(self) -> Task | None:
        """The ticket's round before: it left the mask behind."""
        return Task(self.round - 1, self.seed, "ticket") if self.round else None

    def paths(self, run: RunPaths) -> RoundPaths:
        """The task's files."""
        return run.round(self.seed, self.arm, self.round)

    def done(self, run: RunPaths) -> bool:
        """Whether its done marker is there, and the mask that a ticket leaves for the next round."""
        following = Task(self.round + 1, self.seed, self.arm).paths(run).mask
        return filled(self.paths(run).result) and (self.arm != "ticket" or following.exists())


def tasks(run: Run, reinit: Reinit, rounds: int) -> list[Task]:
    """Every task of an experiment, in an order that respects what each needs. Controls are leaves.

    Raises UserError when an arm is unknown, or when ``run.arms`` lacks the ticket.
    """
    for arm in run.arms:
        arms[arm]
    if "ticket" not in run.arms:
        raise UserError(f"run.arms={list(run.arms)} lacks 'ticket', whose masks all other arms use; add it")
    found = {Task(0, seed, "ticket") for seed in run.replicates}
    for arm in run.arms:
        draws = reinit.draws if arms[arm].draws else 1
        last = min(rounds, 1) if arms[arm].rounds == "one" else rounds
        for draw in range(draws):
            folder = arm if draw == 0 else f"{arm}-{draw}"
            found |= {Task(r, seed, folder) for seed in run.replicates for r in range(1, last + 1)}
    return sorted(found, key=lambda task: (task.round, task.arm != "ticket", task.seed, task.arm))


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

"""The task graph as job arrays, pure: which arrays there are, and which array each waits for, element by element."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lth_scale import ranges
from lth_scale.tasks import Task


@dataclass(frozen=True)
class Array:
    """One sbatch call.

    Args:
        arm: and
        round: what its elements train.
        seeds: one element each.
        after: the arrays it waits for with ``aftercorr``: ids of Slurm's, or numbers of earlier ones in the list; the
            seeds of each hold these.
    """

    arm: str
    round: int
    seeds: tuple[int, ...]
    after: tuple[str | int, ...]


def arrays(chosen: Sequence[Task], done: Collection[Task], live: Mapping[Task, str]) -> tuple[list[Array], list[Task]]:
    """The arrays to submit, in order of round; and the tasks that wait for what nobody is going to do.

    An element without a counterpart in the array that it waits for would wait for the whole of it, so seeds whose
    predecessors are done, or in other arrays, get an array of their own.

    Args:
        chosen: the tasks wanted.
        done: those that are, of all.
        live: task -> id of the array in the queue that has it.
    """
    groups: dict[tuple[int, str, tuple[str | int, ...]], list[int]] = {}
    planned: dict[Task, int] = {}
    blocked = []
    for task in sorted(chosen, key=lambda task: (*task.place, task.arm, task.seed)):
        if task in live or task in done:
            continue
        missing = [need for need in task.needs if need not in done]
        if all(need in live or need in planned for need in missing):
            after = tuple(dict.fromkeys(live[need] if need in live else planned[need] for need in missing))
            groups.setdefault((task.round, task.arm, after), []).append(task.seed)
            planned[task] = list(groups).index((task.round, task.arm, after))
        else:
            blocked.append(task)
    return [Array(arm, round, tuple(seeds), after) for (round, arm, after), seeds in groups.items()], blocked


def fitting(every: Sequence[Array], room: int) -> tuple[list[Array], list[int]]:
    """As many whole rounds as have no more elements than ``room``, and the rounds left for later."""
    rounds = sorted({array.round for array in every})
    for count, round in enumerate(rounds):
        room -= sum(len(array.seeds) for array in every if array.round == round)
        if room < 0:
            return [array for array in every if array.round < round], rounds[count:]
    return list(every), []


def spans(indices: Sequence[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``"0-2,5"``, as sbatch wants an array's indices."""
    return ",".join(ranges.spans(indices))

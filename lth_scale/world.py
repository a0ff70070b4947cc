"""The processes that train together, and what they tell one another beside gradients: small things, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from lth_scale.errors import UserError

T = TypeVar("T")


def rank() -> int:
    """This process's number; 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def first() -> bool:
    """Whether this process is the one that writes what is written once."""
    return rank() == 0


def group() -> dist.ProcessGroup | None:
    """All processes; None alone."""
    return dist.group.WORLD if size() > 1 else None


def wait() -> None:
    """Let no process go on before all have come here."""
    if size() > 1:
        gathered(None)


def agreed(value: T) -> T:
    """The first process's value, everywhere: a file may appear between one process's look and another's."""
    return gathered(value)[0]


def gathered(value: T) -> list[T]:
    """Everybody's value, in order of rank; any small picklable thing."""
    if size() == 1:
        return [value]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, value)
    return found


@contextmanager
def together() -> Iterator[None]:
    """A block that succeeds everywhere or fails everywhere: nobody waits for one that has failed.

    Raises the first failing rank's error as a UserError on those that did not fail themselves.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    told = gathered(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for number, message in enumerate(told):
        if message is not None:
            raise UserError(f"rank {number}: {message}")


def on_first(action: Callable[[], T]) -> T:
    """What the first process makes of it, everywhere; its error too."""
    made: T | None = None
    with together():
        if first():
            made = action()
    return agreed(made)  # type: ignore[return-value]

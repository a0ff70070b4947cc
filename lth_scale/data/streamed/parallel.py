"""The same work on many shards at once, in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from multiprocessing import get_context
from typing import TypeVar

import torch
from pebble import ProcessExpired, ProcessPool
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lth_scale.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def each(work: Callable[[T], R], tasks: Sequence[T], jobs: int) -> Generator[R, None, None]:
    """``work`` on every task in ``jobs`` processes; the results in the order of the tasks.

    Raises what ``work`` raises, after which no process is left, and UserError when a process was killed. Whoever does
    not take all results closes it.
    """
    if min(jobs, len(tasks)) <= 1:
        yield from map(work, tasks)
        return
    pool = ProcessPool(
        max_workers=min(jobs, len(tasks)),
        context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=[1],
    )
    try:
        yield from pool.map(work, tasks).result()
        pool.close()
    except ProcessExpired as error:
        pool.stop()
        raise UserError(
            f"a process died (exit code {error.exitcode}): out of memory, or killed from outside; "
            "the same command continues, with fewer --jobs it needs less memory"
        ) from None
    except BaseException:
        pool.stop()
        raise
    finally:
        pool.join()


def bars(progress: bool) -> Progress:
    """Bars with counts and times; silent unless ``progress``."""
    columns = (TextColumn("{task.description:18}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), disable=not progress)

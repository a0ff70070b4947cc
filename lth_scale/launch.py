"""Many tasks on one machine: processes of one thread-set each, every task as soon as what it needs is done."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import torch
from pebble import ProcessExpired, ProcessPool

from lth_scale import files, settings
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.tasks import Task

POLL = 0.2  # seconds between looks at the running tasks, at most


@dataclass
class Board:
    """What is known of every task while they run; the live table is drawn from it.

    Args:
        every: all tasks wanted.
        running: those being worked on.
        failed: task -> why.
        crashed: how many of the failures were no mistake of the user's.
        begun: when the launch began, in seconds of time.monotonic().
    """

    every: Sequence[Task]
    running: set[Task] = field(default_factory=set)
    failed: dict[Task, str] = field(default_factory=dict)
    crashed: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def exit_code(self) -> int:
        """0 all done, 2 only mistakes of the user, 1 otherwise."""
        return 0 if not self.failed else 1 if self.crashed else 2


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def launch(experiment: Experiment, tasks: Sequence[Task], jobs: int, show: Callable[[Board], None], job: str) -> Board:
    """Run tasks in ``jobs`` processes. A failed task blocks what needs it, nothing else; the board tells why."""
    board = Board(tasks)
    todo = [task for task in tasks if not task.done(experiment.paths)]
    experiment.dataset  # decoded once, before every process would do it  # noqa: B018
    with _pool(min(jobs, len(todo) or 1), experiment) as pool:
        futures: dict[Future[None], Task] = {}
        while todo or futures:
            for task in _ready(experiment, todo, board, room=jobs - len(futures)):
                todo.remove(task)
                board.running.add(task)
                futures[pool.schedule(work, args=[experiment.paths.root, task, job])] = task
            for future in [future for future in futures if future.done()]:
                _finish(board, futures.pop(future), future)
            todo = [task for task in todo if not _blocked(board, task)]
            show(board)
            wait(futures, POLL, FIRST_COMPLETED)
    return board


@contextlib.contextmanager
def _pool(jobs: int, experiment: Experiment) -> Iterator[ProcessPool]:
    """Workers that end with this block, also when it is left by an error or Ctrl-C."""
    threads = experiment.config.hardware.threads
    pool = ProcessPool(
        max_workers=jobs, context=get_context("spawn"), initializer=_begin, initargs=[threads, os.getpid()]
    )
    try:
        yield pool
        pool.close()
    except BaseException:
        pool.stop()
        raise
    finally:
        pool.join()


def _begin(threads: int, parent: int) -> None:
    """In each worker: its threads, and an end when the launcher is gone, so that nothing trains on unseen."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    die_with(parent)


def die_with(parent: int) -> None:
    """End this process when its parent ends, however that happens."""
    import ctypes
    import signal

    die_with_parent = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def work(root: Path, task: Task, job: str) -> None:
    """In a worker: one task. An error that is not the user's leaves its traceback in the round's folder."""
    from lth_scale import lottery  # the launcher itself trains nothing, and starts sooner without

    try:
        lottery.play(_experiment(root), task, job)
    except UserError:
        raise
    except Exception:
        files.write_text(task.paths(RunPaths(root)).folder / "error.txt", traceback.format_exc())
        raise


@lru_cache(maxsize=1)
def _experiment(root: Path) -> Experiment:
    paths = RunPaths(root)
    return Experiment(settings.load(paths.config), paths)


def _ready(experiment: Experiment, todo: Sequence[Task], board: Board, room: int) -> list[Task]:
    able = (task for task in todo if not task.missing(experiment.paths))
    return [task for task, _ in zip(able, range(room), strict=False)]


def _blocked(board: Board, task: Task) -> bool:
    """Whether something it needs has failed; the chain of needs is followed by marking each link."""
    for need in task.needs:
        if need in board.failed:
            board.failed[task] = f"needs {need}, which failed"
    return task in board.failed


def _finish(board: Board, task: Task, future: Future[None]) -> None:
    board.running.discard(task)
    error = future.exception()
    if error is None:
        return
    board.crashed += not isinstance(error, UserError)
    if isinstance(error, ProcessExpired):
        board.failed[task] = f"its process died (exit code {error.exitcode}): out of memory, or killed from outside"
    else:
        board.failed[task] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"

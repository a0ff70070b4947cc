"""Stopping on request: a signal sets a flag, all ranks agree on a step, save there, and end.

Batch systems announce the end of a job by a signal that reaches the ranks at different moments, or one of them only. A
rank that saved or left at once would wait for the others for ever, as they wait for it in the next gradient.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from lth_scale import world
from lth_scale.training.module import Classifier
from lth_scale.training.parts import Part

HEEDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_heard: list[int] = []  # signals so far; handlers belong to the process, and so does this


class Stopped(BaseException):
    """Raised on all ranks at the same step, once its state is saved.

    It is no KeyboardInterrupt, which Lightning turns into ``sys.exit(1)``; nor an Exception: nothing has gone wrong.

    Args:
        number: of the signal.
        step: that was saved.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name} at step {self.step}, checkpoint saved"


@contextmanager
def heeding() -> Iterator[None]:
    """SIGTERM, SIGUSR1 and SIGINT are taken note of inside, and nothing else; a second SIGINT interrupts.

    Nothing is changed in a thread other than the main one, where Python allows no handlers.
    """
    if current_thread() is not main_thread():
        yield
        return
    _heard.clear()
    earlier = {number: signal.signal(number, _hear) for number in HEEDED}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _hear(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and signal.SIGINT in _heard:
        raise KeyboardInterrupt
    _heard.append(number)


def take_over(trainer: pl.Trainer) -> None:
    """Keep Lightning's hands off signals; call it before ``fit``.

    Its SIGTERM handler broadcasts from inside whatever it interrupts, and each rank leaves on its own. Before every
    micro-batch it has the ranks wait for a broadcast of the first one's flag, on a GPU for the GPU as well.
    """
    quiet: Any = trainer
    quiet._signal_connector.register_signal_handlers = lambda: None
    quiet.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


class Stop(Part):
    """Ends training at the step on which all ranks agree; it comes before the part that saves on its own account.

    What was heard by the end of a step travels, as the highest signal of any rank, while the next step is computed, and
    is read at that step's end: everybody reads the same, and nobody waits. Alone there is nothing to agree on.

    Args:
        save: saves the state of a module at a step; called on all ranks.
    """

    def __init__(self, save: Callable[[Classifier, int], None]) -> None:
        self._save = save
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Ask, for the end of the first step."""
        self._ask()

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Save and raise Stopped if anybody was asked to stop; else ask again."""
        number = self._answer()
        if number:
            self._save(module, step)
            raise Stopped(number, step)
        self._ask()

    def on_end(self, trainer: pl.Trainer) -> None:
        """Take the last answer: a signal that comes this late is left to the next round, if there is one."""
        self._answer()

    def _ask(self) -> None:
        if world.size() > 1:
            heard = torch.tensor(max(_heard, default=0))
            work = dist.all_reduce(heard, dist.ReduceOp.MAX, async_op=True)
            assert work is not None
            self._asked = heard, work

    def _answer(self) -> int:
        if self._asked is None:
            return max(_heard, default=0)
        (heard, work), self._asked = self._asked, None
        work.wait()
        return int(heard)

"""Signals: whichever rank hears one, and whenever, all save at the same step and end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import pytorch_lightning as pl
from launches import Launch, notes
from launches import launch as launch
from proofs import ended, fork
from rank_programs import OnePart, Tiny

from lth_scale.training import stopping
from lth_scale.training.stopping import Stop, Stopped, heeding


def second_only(pids: list[int]) -> None:
    os.kill(pids[1], signal.SIGUSR1)


def first_only(pids: list[int]) -> None:
    os.kill(pids[0], signal.SIGTERM)


def half_a_second_apart(pids: list[int]) -> None:
    os.kill(pids[0], signal.SIGUSR1)
    time.sleep(0.5)
    os.kill(pids[1], signal.SIGUSR1)


def at_once(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGTERM)


def differently(pids: list[int]) -> None:
    """Either alone has another exit code."""
    os.kill(pids[0], signal.SIGUSR1)
    os.kill(pids[1], signal.SIGTERM)


def stopped_together(folder: Path, code: int, number: int) -> bool:
    saved = notes(folder, "saved")
    return len(saved) == 2 and saved[0] == saved[1] and code == 128 + number


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("act", "number"),
    [(second_only, 10), (first_only, 15), (half_a_second_apart, 10), (at_once, 15), (differently, 15)],
)
def test_all_ranks_stop_at_the_same_step(
    act: Callable[[list[int]], None], number: int, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAUSE", "0.4" if act is half_a_second_apart else "0.01")
    code, said = launch("fit", act=act)
    assert stopped_together(tmp_path, code, number), said
    assert not notes(tmp_path, "done")


@pytest.mark.distributed
def test_left_to_lightning_they_do_not(launch: Launch, tmp_path: Path) -> None:
    """The control: with its handlers in place the same signal ends without a checkpoint."""
    code, _ = launch("fit", "ddp", "100000", "no", timeout=5, act=lambda pids: os.kill(pids[1], signal.SIGTERM))
    assert not notes(tmp_path, "saved")
    assert code not in (0, 128 + signal.SIGTERM)


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_stage_3"])
def test_other_strategies_let_the_stop_through(strategy: str, launch: Launch, tmp_path: Path) -> None:
    code, said = launch("fit", strategy, act=second_only)
    assert stopped_together(tmp_path, code, signal.SIGUSR1), said


@pytest.mark.distributed
def test_a_signal_at_the_last_step_leaves_the_round_whole(launch: Launch, tmp_path: Path) -> None:
    """It is known to all one step later, which there is none of."""
    assert launch("last", "8") == (0, "")
    assert notes(tmp_path, "done") == [8, 8]
    assert not notes(tmp_path, "saved")


# --- alone ------------------------------------------------------------------------------------------------------------


def trainer(stop: Stop, steps: int) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    made: Any = pl.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[OnePart(stop)], enable_model_summary=False, **quiet
    )
    stopping.take_over(made)
    return made


class Signalled(Tiny):
    """Gets signals in its fourth step."""

    def __init__(self, folder: Path, *numbers: int) -> None:
        super().__init__(folder)
        self.numbers = numbers

    def training_step(self, batch: Any, index: int) -> Any:
        if index == 3:
            for number in self.numbers:
                os.kill(os.getpid(), number)
        return super().training_step(batch, index)


@pytest.mark.parametrize("number", stopping.HEEDED)
def test_alone_it_stops_after_the_step_that_was_under_way(number: signal.Signals, tmp_path: Path) -> None:
    saved: list[int] = []
    with heeding(), pytest.raises(Stopped, match=f"stopped by {number.name} at step 4, checkpoint saved") as stopped:
        trainer(Stop(lambda module, step: saved.append(step)), 10).fit(Signalled(tmp_path, number))
    assert (stopped.value.number, stopped.value.step, saved) == (number, 4, [4])


def test_without_a_signal_nothing_stops(tmp_path: Path) -> None:
    made = trainer(Stop(lambda module, step: pytest.fail("saved")), 10)
    with heeding():
        made.fit(Tiny(tmp_path))
    assert made.global_step == 10


def test_what_cannot_be_saved_is_not_said_to_be(tmp_path: Path) -> None:
    def save(module: Any, step: int) -> None:
        raise OSError("No space left on device")

    with heeding(), pytest.raises(OSError, match="No space left"):
        trainer(Stop(save), 10).fit(Signalled(tmp_path, signal.SIGTERM))


def test_a_second_interrupt_is_one() -> None:
    with heeding(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in stopping.HEEDED]
    with heeding():
        assert not set(before) & {signal.getsignal(number) for number in stopping.HEEDED}
    assert [signal.getsignal(number) for number in stopping.HEEDED] == before
    assert ended(fork(lambda: os.kill(os.getpid(), signal.SIGTERM))) == -signal.SIGTERM


def test_what_was_heard_earlier_does_not_stop_later_work(tmp_path: Path) -> None:
    with heeding():
        os.kill(os.getpid(), signal.SIGTERM)
    made = trainer(Stop(lambda module, step: pytest.fail("saved")), 5)
    with heeding():
        made.fit(Tiny(tmp_path))
    assert made.global_step == 5


def test_another_thread_changes_no_handlers() -> None:
    found: list[bool] = []
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with heeding():
            found.append(signal.getsignal(signal.SIGTERM) is before)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def test_lightning_has_what_is_taken_over() -> None:
    """Names that are its own affair: a version without them would go on as it likes, in silence."""
    untouched: Any = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert callable(untouched._signal_connector.register_signal_handlers)
    assert callable(untouched.fit_loop.epoch_loop._broadcast_sigterm_tensor)

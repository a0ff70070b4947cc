"""Ranks under our own launcher, torchrun and srun: what each is told, and how all end when one fails or is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from launches import PROGRAMS, Forked, Launch, begin, leave, notes, when_running
from launches import launch as launch
from rank_programs import run

from lth_scale import ranks
from lth_scale.errors import UserError
from lth_scale.training import environment

pytestmark = pytest.mark.distributed

CONTINUES = "; the same command continues\n"


# --- our own launcher -------------------------------------------------------------------------------------------------


def test_all_end_well(launch: Launch, tmp_path: Path) -> None:
    assert launch("fit", "ddp", "5") == (0, "")
    assert notes(tmp_path, "done") == [5, 5]
    assert not notes(tmp_path, "saved")


@pytest.mark.kill
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_rank_ends_all_and_is_named(rank: str, launch: Launch, tmp_path: Path) -> None:
    assert launch("loop", "killed", "7", rank) == (1, f"lth: rank {rank} was killed by SIGKILL{CONTINUES}")
    assert not notes(tmp_path, "done")


@pytest.mark.kill
def test_a_rank_that_hangs_ends_all_after_the_timeout(launch: Launch) -> None:
    begun = time.monotonic()
    code, said = launch("loop", "hangs", "7", timeout=3)
    assert time.monotonic() - begun < 40  # its own timeout, PATIENCE, and the time to start
    assert (code, said) == (1, f"lth: rank 1 hung: no answer from another rank for 3 s (hardware.timeout){CONTINUES}")


@pytest.mark.parametrize(("fault", "message"), [("bug", "a bug"), ("unanswered", "a bug with a question open")])
def test_an_error_of_one_rank_is_told_once(fault: str, message: str, launch: Launch) -> None:
    begun = time.monotonic()
    code, said = launch("loop", fault, "7", timeout=600)
    assert time.monotonic() - begun < 60, "nobody waits for answers that do not come"
    assert code == 1
    assert said.endswith(f"lth: rank 1 failed: ValueError: {message}{CONTINUES}")
    assert said.count("Traceback") == 1, "the other rank's loss is no news"


def test_a_mistake_of_the_users_is_raised(launch: Launch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^data.dir='nowhere' is not a folder$") as mistake:
        launch("loop", "mistake", "7")
    assert mistake.value.code == 3
    assert capfd.readouterr().err == ""


def test_a_wrong_number_of_processes_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASKED", "3")
    with pytest.raises(UserError, match="are 3 processes, but 2 were started"):
        launch("loop")


@pytest.mark.parametrize(
    "signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGUSR1, signal.SIGTERM]], ids=["TERM", "INT", "both"]
)
def test_a_signal_to_the_launcher_stops_all_ranks(signals: list[int], launch: Launch, tmp_path: Path) -> None:
    """Two at the same instant are what preemption sends."""

    def act(pids: list[int]) -> None:
        for number in signals:
            os.kill(os.getpid(), number)

    before = [signal.getsignal(number) for number in ranks.FORWARDED]
    code, said = launch("fit", act=act)
    first, second = notes(tmp_path, "saved")
    assert first == second
    assert code == 128 + max(signals)
    assert said == f"lth: stopped by {signal.Signals(max(signals)).name} at step {first}, checkpoint saved{CONTINUES}"
    assert [signal.getsignal(number) for number in ranks.FORWARDED] == before


def test_a_second_interrupt_ends_ranks_that_never_heed_one(launch: Launch, tmp_path: Path) -> None:
    def act(pids: list[int]) -> None:
        for _ in range(2):
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGINT)

    assert launch("loop", act=act) == (130, f"lth: stopped{CONTINUES}")
    assert not notes(tmp_path, "done")


@pytest.mark.parametrize("caught", [False, True])
def test_a_signal_before_ranks_are_ready_ends_them(
    caught: bool, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By its default action, or by an exception of Python's, which the command line turns into an exit code."""
    number = signal.SIGINT if caught else signal.SIGTERM
    script = f"""
import os, sys, time
try:
    open({str(tmp_path)!r} + "/pid." + os.environ["RANK"], "w").write("1")
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""
    when_running(tmp_path, 2, lambda pids: os.kill(os.getpid(), number))
    assert ranks.launch([sys.executable, "-c", script], 2, 1) == 128 + number
    assert capfd.readouterr().err == f"lth: stopped by {number.name}{CONTINUES}"


# --- torchrun ---------------------------------------------------------------------------------------------------------


def test_torchrun_starts_ranks_and_passes_a_signal_on(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", PROGRAMS]
    process = subprocess.Popen([*torchrun, "fit", str(tmp_path)], stderr=subprocess.PIPE, text=True)
    when_running(tmp_path, 2, lambda pids: process.terminate())
    _, said = process.communicate(timeout=100)
    first, second = notes(tmp_path, "saved")
    assert first == second
    assert said.count(f"lth: stopped by SIGTERM at step {first}, checkpoint saved{CONTINUES}") == 1


# --- srun -------------------------------------------------------------------------------------------------------------


def step(number: int = 0, tasks: int = 2) -> dict[str, str]:
    """What srun sets for a task, as Slurm 22.05 does: the job has another node, first in its list."""
    return {
        "SLURM_JOB_ID": str(os.getpid() % 10000),
        "SLURM_JOB_NAME": "batch.sh",
        "SLURM_NODELIST": "elsewhere,localhost",
        "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
    }


def test_tasks_of_srun_are_ranks(launch: Launch, tmp_path: Path) -> None:
    told = [step(number) for number in (0, 1)]

    def task(number: int) -> None:
        begin(told[number])
        sys.stderr = (tmp_path / f"told.{number}").open("w", buffering=1)
        leave(run("fit", str(tmp_path)))

    tasks = [Forked(partial(task, number)) for number in (0, 1)]
    when_running(tmp_path, 2, lambda pids: tasks[1].send_signal(signal.SIGUSR1))
    assert [task.wait() for task in tasks] == [138, 138]
    first, second = notes(tmp_path, "saved")
    assert first == second
    said = [(tmp_path / f"told.{number}").read_text() for number in (0, 1)]
    assert said == [f"lth: stopped by SIGUSR1 at step {first}, checkpoint saved{CONTINUES}", ""]


@pytest.fixture
def task(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process as a task of srun."""
    for name, value in step().items():
        monkeypatch.setenv(name, value)
    return step()


def test_the_first_rank_is_on_the_first_node_of_the_step(task: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.launched()
    place = environment.cluster()
    assert isinstance(place, environment.Srun)
    assert not place.auto_requeue
    assert (place.main_address, place.main_port) == ("localhost", 15000 + int(task["SLURM_JOB_ID"]))
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.setenv("SLURM_STEP_ID", "3")
    assert place.main_port == 15000 + (int(task["SLURM_JOB_ID"]) + 3000) % 10000


@pytest.mark.parametrize(
    "change", [{"SLURM_STEP_ID": None}, {"SLURM_PTY_PORT": "40000"}, {"SLURM_NTASKS": "1"}], ids=str
)
def test_what_is_no_task_is_no_rank(
    change: dict[str, str | None], task: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch script has most of a task's variables, and so has an interactive shell."""
    for name, value in change.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    assert not environment.launched()

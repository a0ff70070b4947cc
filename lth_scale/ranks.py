"""Several devices for every round: the ranks of one machine, started and watched over, and what each of them does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from lth_scale.errors import UserError

if TYPE_CHECKING:
    from lth_scale.config import Hardware
    from lth_scale.experiment import Experiment
    from lth_scale.tasks import Task

LAUNCHER, LAST_WORDS = "LTH_LAUNCHER", "LTH_LAST_WORDS"
"""In the environment of ranks that :func:`launch` started: its pid, and the file where a rank says why it ends."""

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL = 0.05  # seconds between looks at the ranks
PATIENCE = 5.0  # seconds that the others have once one has failed; over gloo they notice at once
CONTINUES = "the same command continues"

Kind = Literal["user", "stopped", "lost", "error"]


# --- the launcher -----------------------------------------------------------------------------------------------------


@dataclass
class Rank:
    """A rank as its launcher sees it.

    Args:
        number: its place among the ranks.
        process: it.
        words: the file where it says why it ends.
        code: its exit code, once it has ended.
        ended: when, in seconds of time.monotonic().
        given_up: whether the launcher ended it, long after another had failed.
    """

    number: int
    process: subprocess.Popen[bytes]
    words: Path
    code: int | None = None
    ended: float = 0.0
    given_up: bool = False

    def look(self) -> None:
        """See whether it has ended."""
        if self.code is None:
            self.code, self.ended = self.process.poll(), time.monotonic()

    def kill(self) -> None:
        """End it and whatever it has started, at once; also when it is stopped."""
        self.given_up = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def last_words(self) -> tuple[Kind, str] | None:
        """What kind of end it says it met, and the message."""
        with suppress(OSError, ValueError):  # one that was killed has left none, or half of them
            kind, message = json.loads(self.words.read_text())
            return kind, message
        return None


def start(words: Sequence[str], devices: int, threads: int) -> int:
    """Run ``lth WORDS`` as ``devices`` ranks; the exit code of :func:`launch`."""
    return launch([sys.executable, "-m", "lth_scale", *words], devices, threads)


def launch(command: Sequence[str], devices: int, threads: int) -> int:
    """Run a command as ``devices`` ranks, with the environment that torchrun gives.

    SIGTERM, SIGUSR1 and SIGINT go to every rank; how long these take to save is bounded by their own timeout,
    and by a second SIGINT. Once a rank has failed the others have a few seconds to end.

    Returns 0, 128 + the signal after which the ranks stopped, or 1 when one failed; which one and why is said once.
    Raises UserError with the message of a rank that met one.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory(prefix="lth_ranks_") as folder, _listening() as heard:
        shared = _shared(devices, threads, store.port)
        ranks = [_started(command, number, shared, Path(folder)) for number in range(devices)]
        _watch(ranks, heard)
        return _conclude(ranks, heard)


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Signals that arrive inside, in order."""
    heard: list[int] = []
    earlier = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in FORWARDED}
    try:
        yield heard
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _shared(devices: int, threads: int, port: int) -> dict[str, str]:
    return {
        LAUNCHER: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the launcher's, on a port that was free
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": uuid.uuid4().hex,
    }


def _started(command: Sequence[str], number: int, shared: dict[str, str], folder: Path) -> Rank:
    """In a session of its own: a terminal's Ctrl-C goes to the launcher alone."""
    words = folder / str(number)
    own = {"RANK": str(number), "LOCAL_RANK": str(number), LAST_WORDS: str(words)}
    process = subprocess.Popen(command, env=os.environ | shared | own, start_new_session=True)
    return Rank(number, process, words)


def _watch(ranks: Sequence[Rank], heard: list[int]) -> None:
    """Until all have ended; passes on what is heard, to the ranks only and not to the loaders of their data."""
    passed, deadline = 0, float("inf")
    while True:
        for rank in ranks:
            rank.look()
        running = [rank for rank in ranks if rank.code is None]
        if not running or time.monotonic() > deadline + PATIENCE:  # not even SIGKILL ends one that the disk holds
            return
        for rank in running:
            for number in heard[passed:]:
                rank.process.send_signal(number)
        passed = len(heard)
        if any(rank.code for rank in ranks) or heard.count(signal.SIGINT) > 1:
            deadline = min(deadline, time.monotonic() + PATIENCE * (heard.count(signal.SIGINT) < 2))
        if time.monotonic() > deadline:
            for rank in running:
                rank.kill()
        time.sleep(POLL)


def _conclude(ranks: Sequence[Rank], heard: Sequence[int]) -> int:
    """Say what ended them, as :func:`launch` does; the exit code."""
    failed = [rank for rank in ranks if rank.code != 0]
    if not failed:
        return 0
    if heard.count(signal.SIGINT) > 1:
        print(f"lth: stopped; {CONTINUES}", file=sys.stderr)
        return 128 + signal.SIGINT
    kind, message, code = _verdict(min(failed, key=_first), failed, heard)
    if kind == "user":
        error = UserError(message)
        error.code = code
        raise error
    print(f"lth: {message}; {CONTINUES}", file=sys.stderr)
    return code


def _first(rank: Rank) -> tuple[bool, float]:
    """Order of causes: that a rank was lost to others, or had to be ended, is a consequence."""
    words = rank.last_words
    return rank.given_up or (words is not None and words[0] == "lost"), rank.ended


def _verdict(cause: Rank, failed: Sequence[Rank], heard: Sequence[int]) -> tuple[Kind, str, int]:
    """Kind, message and exit code of what happened."""
    number, code = cause.number, cause.code or 0
    if words := cause.last_words:
        kind, message = words
        hung = ", ".join(f"rank {rank.number}" for rank in failed if rank.given_up)
        if kind == "lost":
            return kind, f"{hung} hung: {message}" if hung else f"rank {number}: {message}", 1
        return kind, f"rank {number} failed: {message}" if kind == "error" else message, code
    for sent in (-code, code - 128):  # before it heeded signals
        if sent in heard:
            return "stopped", f"stopped by {signal.Signals(sent).name}", 128 + sent
    if code < 0:
        return "error", f"rank {number} was killed by {signal.Signals(-code).name}", 1
    return "error", f"rank {number} failed (exit code {code})", 1


# --- a rank -----------------------------------------------------------------------------------------------------------


def launched() -> bool:
    """Whether torchrun, srun or :func:`launch` started this process as one rank of several."""
    from lth_scale.training import environment

    return environment.launched()


def train(experiment: Experiment, tasks: Sequence[Task], job: str) -> bool:
    """All tasks in order, in this process, together with the other ranks; whether this is the one that reports."""
    from lth_scale import lottery

    return joined(experiment.config.hardware, lambda: lottery.run(experiment, tasks, job))


def joined(hardware: Hardware, action: Callable[[], None], stopped: int | None = None) -> bool:
    """Do something as one of the ranks, or alone; whether this is the first.

    An error, or a stop, ends the process here: exit code 2 for a mistake of the user's, ``stopped`` or 128 + the signal
    for a stop, 1 otherwise. A launcher of ours speaks of it, else the rank itself.
    """
    import torch

    from lth_scale import world
    from lth_scale.launch import die_with
    from lth_scale.training import environment, stopping

    if LAUNCHER in os.environ:
        die_with(int(os.environ[LAUNCHER]))
    torch.set_num_threads(hardware.threads)
    with stopping.heeding():
        try:
            if several := hardware.devices * hardware.nodes > 1 or environment.launched():
                environment.join(hardware)
            action()
            first = world.first()
            if several:
                environment.leave()
            return first
        except BaseException as error:
            _end(error, hardware.timeout, stopped)


def _end(error: BaseException, timeout: int, stopped: int | None) -> NoReturn:
    """Say why, and end at once: whoever leaves the others in good order waits for them, who may be gone or hang."""
    from lth_scale import world

    kind, message, code = _reason(error, timeout)
    if kind == "error":
        traceback.print_exception(error)
    if not _told(kind, message) and (kind != "stopped" or world.first()):
        speaker = f"rank {world.rank()}: " if kind in ("error", "lost") else ""
        print(f"lth: {speaker}{message}" + f"; {CONTINUES}" * (kind != "user"), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(stopped if kind == "stopped" and stopped is not None else code)


def _reason(error: BaseException, timeout: int) -> tuple[Kind, str, int]:
    """Kind, message and exit code of what ended a rank."""
    if isinstance(error, UserError):
        return "user", str(error), error.code
    if isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning makes the one of the other
        return "stopped", "stopped", 128 + signal.SIGINT
    from lth_scale.training import environment, stopping

    if isinstance(error, stopping.Stopped):
        return "stopped", str(error), 128 + error.number
    if lost := environment.lost(error, timeout):
        return "lost", lost, 1
    return "error", f"{type(error).__name__}: {error}", 1


def record(error: UserError | KeyboardInterrupt) -> bool:
    """Leave a rank's error to whoever started it, so that of many ranks one speaks; whether there is anybody."""
    kind, message, _ = _reason(error, 0)
    return _told(kind, message)


def _told(kind: Kind, message: str) -> bool:
    if LAST_WORDS not in os.environ:
        return False
    Path(os.environ[LAST_WORDS]).write_text(json.dumps([kind, message]))
    return True

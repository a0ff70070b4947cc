"""What a job does: one round, in this process and its fellows; and after a failure, whether to try again."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from lth_scale import claims, files, lottery, ranks, world
from lth_scale.errors import NotReady, UserError
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.status import open_experiment
from lth_scale.tasks import Task

CONTINUE = 75  # exit code: saved, to be continued (EX_TEMPFAIL)
TRIES = 3  # failures in a row without a step gained
PATIENCE = 20.0  # seconds until a file of another node is taken to be missing: file servers show it late


def task(root: Path, arm: str, round: int, index: int) -> Task:
    """The task of an array's element. Raises UserError when there is no such."""
    seeds = files.read_json(RunPaths(root).submit.seeds)
    if not 0 <= index < len(seeds):
        raise UserError(f"--index={index} is not valid; {RunPaths(root).submit.seeds} holds {len(seeds)} seeds")
    return Task(round, seeds[index], arm)


def work(root: Path, what: Task, job: str, warned: Sequence[int] = ()) -> int:
    """Train one round together with the other tasks of this step, and return 0. ``warned``: signals heard so far.

    Otherwise the process ends here: 2 for a mistake of the user's, 3 when what it needs is not done, 75 when it was
    asked to stop and has saved, 1 for any other error.
    """
    experiment = open_experiment(root)
    if ranks.joined(experiment.config.hardware, lambda: _play(experiment, what, job, warned), stopped=CONTINUE):
        print(f"lth: {what} is done")
    return 0


def _play(experiment: Experiment, what: Task, job: str, warned: Sequence[int]) -> None:
    for number in warned:
        signal.raise_signal(number)  # by now it is heeded, after the next step
    world.on_first(lambda: _forget(experiment.paths.submit.tries(what.seed, what.arm, what.round), job))
    world.on_first(lambda: _ready(experiment.paths, what))
    world.on_first(lambda: _free(what.paths(experiment.paths).claims, job))
    lottery.run(experiment.established(), [what], job)


def _forget(record: Path, job: str) -> None:
    """The failures of an earlier submission."""
    if record.exists() and files.read_json(record)["job"] != job:
        record.unlink()


def _ready(paths: RunPaths, what: Task) -> None:
    begun = time.monotonic()
    while missing := what.missing(paths):
        if time.monotonic() > begun + PATIENCE:
            raise NotReady(f"{what} is not ready: {missing[0]} is not done")
        time.sleep(0.5)


def _free(folder: Path, job: str) -> None:
    """Wait for an earlier job whose host was lost to have been silent for long, instead of giving up at once."""
    begun = time.monotonic()
    while (owner := claims.holder(folder)) and owner["job"] != job and owner["host"] != socket.gethostname():
        if not claims.alive(owner, folder) or time.monotonic() > begun + claims.SILENCE + claims.HEARTBEAT:
            return
        time.sleep(1)


def failed(root: Path, what: Task, job: str, code: int) -> int:
    """Take note of a failure; 0 if the job should be queued again, else 1.

    Only failures count, and only those that gained no step: a job that was ended by others may come back for ever. A
    mistake of the user's is final at once. The job's tasks have ended, so whatever they still claim is given back.
    """
    paths = RunPaths(root)
    _give_back(what.paths(paths).claims, job)
    record, step = paths.submit.tries(what.seed, what.arm, what.round), _step(what.paths(paths).checkpoints)
    known = files.read_json(record) if record.exists() else {}
    tries = known["tries"] + 1 if (known.get("job"), known.get("step")) == (job, step) else 1
    final = tries >= TRIES or code == UserError.code
    files.write_json(record, {"job": job, "step": step, "tries": tries, "code": code, "final": final})
    print(f"lth: {what} failed at step {step} (exit code {code}), {tries} of {TRIES} tries without a step gained")
    return int(final)


def _give_back(folder: Path, job: str) -> None:
    """A claim of tasks that were killed, or another job would wait until they have been silent for long."""
    owner = claims.holder(folder)
    if owner is not None and owner["job"] == job:
        claims.release(folder, int(owner["claim"]))


def _step(folder: Path) -> int:
    """The highest step that an attempt has left a checkpoint of; 0 for none."""
    return max(
        (int(path.name[5:13]) for path in folder.glob("step_*/") if re.match(r"step_\d{8}\.", path.name)), default=0
    )

"""Sending what was logged, by W&B's own client in processes of its own: beside training, or later by ``lth sync``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lth_scale import claims
from lth_scale.errors import UserError
from lth_scale.paths import RoundPaths, RunPaths
from lth_scale.processes import heard, program
from lth_scale.tracking import segments
from lth_scale.tracking.aside import apart

CLIENT = (sys.executable, "-m", "wandb")
LOGS = "wandb/offline-run-*/run-*.wandb"  # in an attempt's folder; W&B's own names


def logs(paths: RoundPaths) -> list[Path]:
    """The files that the attempts of a round have logged to, oldest first."""
    return sorted(paths.folder.glob(f"attempts/*/{LOGS}"))


def pending(paths: RunPaths) -> list[Path]:
    """The files of a run that were not sent whole, in the order in which they have to be.

    Those of attempts at work are left to them; what a kill has torn is mended first.
    """
    found = [*paths.root.glob(f"seed_*/*/round_*/attempts/*/{LOGS}"), *logs(paths.summary)]
    left = (path for path in found if not sent(path).exists() and not _at_work(path) and not _overtaken(path))
    return sorted(path for path in left if segments.mend(path))


def _overtaken(path: Path) -> bool:
    """Whether the service has a later log of the run: this one, of an attempt that was killed, would set it back."""
    return any(other > path and sent(other).exists() for other in logs(RoundPaths(path.parents[4])))


def _at_work(path: Path) -> bool:
    attempt = path.parents[2]
    claims_of = RoundPaths(attempt.parents[1]).claims
    owner = claims.holder(claims_of)
    return owner is not None and owner["claim"] == attempt.name and claims.alive(owner, claims_of)


def sent(path: Path) -> Path:
    """The client's own marker of a file that the service has."""
    return path.with_name(f"{path.name}.synced")


def linked(path: Path) -> Path:
    """The marker of a file whose run the service knows to use what it uses."""
    return path.with_name(f"{path.name}.linked")


def link(logs: Iterable[Path], limit: float) -> str:
    """Declare what the runs of files that are sent start from, which the client cannot log; why if not all could be."""
    waiting = [path for path in logs if sent(path).exists() and not linked(path).exists()]
    using = [path for path in waiting if segments.uses(path)]
    for path in set(waiting) - set(using):
        linked(path).touch()
    words = [*program("tracking.linking"), *map(str, using)]
    said = _said(words, time.monotonic() + limit) if using else ""
    return "" if all(linked(path).exists() for path in using) else said


def follow(folder: Path) -> None:
    """Begin to send what is being logged into an attempt's folder; nobody waits for it."""
    with (folder / "upload.log").open("ab") as log:
        subprocess.Popen(
            [*program("tracking.following"), str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def sync(paths: RunPaths, limit: float | None = None) -> int:
    """Send what is pending; how many files that were. Again, it sends nothing twice.

    Args:
        paths: the run folder.
        limit: seconds that it may take; None: as long as the client tries.

    Raises UserError when there is no key, or the service does not answer, or another process is sending; nothing is
    lost.
    """
    deadline = float("inf") if limit is None else time.monotonic() + limit
    waiting = pending(paths)
    with ExitStack() as held:
        fresh = {path for path in waiting if held.enter_context(sending(path)) and not _moved(path)}
        problem = _send(waiting, {path.name for path in waiting if path not in fresh}, deadline)
    left = [path for path in waiting if not sent(path).exists()]
    if left:
        raise UserError(f"{len(left)} of {len(waiting)} logs of {paths.root} were not sent: {problem}; try again later")
    if said := link(paths.root.glob(f"seed_*/*/round_*/attempts/*/{LOGS}"), deadline - time.monotonic()):
        print(f"not all is declared of what runs start from ({said}); lth sync {paths.root} tries again")
    return len(waiting)


def _moved(path: Path) -> bool:
    """Whether the run folder was logged somewhere else, where the client would look for the files of artifacts."""
    return any(not Path(record.manifest.contents[0].local_path).exists() for record, _ in segments.kept(path))


@contextmanager
def sending(path: Path) -> Iterator[bool]:
    """Have a file to oneself; whether nothing of it was sent before. Raises UserError where another process has it."""
    with claims.claimed(path.with_name("sending"), "none", only=True) as attempt:
        yield attempt == 1


def _send(waiting: Sequence[Path], begun: set[str], deadline: float) -> str:
    """By W&B's own sync, together; runs of which the service may have a part by ours, log by log. What was said last.

    A log that was not sent holds up the later ones of its run, whose steps would be taken for all there is.
    """
    whole = [str(path) for path in waiting if path.name not in begun]
    said = _said([*CLIENT, "sync", *whole], deadline) if whole else ""
    stuck: set[str] = set()
    for path in waiting:
        if path.name in begun - stuck:
            said = _said([*program("tracking.resending"), str(path)], deadline)
            stuck |= set() if sent(path).exists() else {path.name}
    return said


def _said(words: Sequence[str], deadline: float) -> str:
    """The last line that a process said. At the deadline it ends with all that it has started."""
    limit = None if deadline == float("inf") else max(0.1, deadline - time.monotonic())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as own, apart():
        # The client's own logs go there; a service that others have started would go on trying when it is ended.
        try:
            return heard(words, limit, WANDB_DIR=own)[1]
        except subprocess.TimeoutExpired:
            return "the service did not take them in time"

"""Who works on a round: numbered claim files, made exclusively. The highest owns the round and numbers its attempt.

An owner shows that it lives by touching its claim; how long ago is told by the file server's clock alone. Another may
take over when the owner is dead, or silent for long, or was the same job before it was queued again: then the earlier
one may still be at work on a lost node, so it looks before everything it publishes, and stops.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lth_scale import files
from lth_scale.errors import UserError

HEARTBEAT = 20.0  # seconds between signs of life
SILENCE = 300.0  # seconds without one after which an owner on another host is taken for dead


def acquire(folder: Path, job: str = "none") -> int:
    """Claim a round; returns the attempt's number, from 1. ``job`` is a name that the next one is told.

    Raises UserError naming the owner's host, pid and job when another live process has it; that of the same job is
    what is left of it from before it was queued again.
    """
    while True:
        owner = holder(folder)
        if owner is not None and not (job == owner["job"] != "none") and alive(owner, folder):
            raise UserError(
                f"{folder.parent} is being worked on by pid {owner['pid']} on {owner['host']} (job {owner['job']}); "
                f"wait for it, or if that host is gone for good remove {folder / owner['claim']}"
            )
        number = 1 + int(owner["claim"] if owner else 0)
        if files.create_bytes(folder / f"{number:06d}", json.dumps(_me(job)).encode()):
            return number


@contextmanager
def claimed(folder: Path, job: str, only: bool) -> Iterator[int]:
    """Hold a claim while inside; its attempt number. With ``only`` false another rank claims, and the number is 0."""
    if not only:
        yield 0
        return
    attempt, over = acquire(folder, job), threading.Event()
    beating = threading.Thread(target=_beat, args=[folder / f"{attempt:06d}", over], daemon=True)
    beating.start()
    try:
        yield attempt
    finally:
        over.set()
        beating.join()
        release(folder, attempt)


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(HEARTBEAT):
        with suppress(OSError):  # a file server that is away for a while
            os.utime(path)  # without times: the server's own


def check(folder: Path, attempt: int) -> None:
    """Before something is published: raises UserError when another attempt has taken over."""
    owner = holder(folder)
    if owner is not None and int(owner["claim"]) > attempt:
        by = f" (pid {owner['pid']} on {owner['host']}, job {owner['job']})" if owner["pid"] else ""
        raise UserError(
            f"{folder.parent} was taken over by attempt {int(owner['claim'])}{by}; attempt {attempt} ends here, and "
            "what it has not published is given up"
        )


def release(folder: Path, attempt: int) -> None:
    """Give a claim back at the end of an attempt, well or badly ended: empty, its number stays taken."""
    os.truncate(folder / f"{attempt:06d}", 0)  # works on a full disk too


def holder(folder: Path) -> dict[str, Any] | None:
    """The highest claim, or None; one that is empty, or torn by a crash, is nobody's: its pid is 0."""
    names = sorted(path.name for path in folder.glob("[0-9]" * 6))
    if not names:
        return None
    nobody = {"pid": 0, "host": "unknown", "job": "unknown", "started": None}
    try:
        claim = dict(json.loads((folder / names[-1]).read_text()))
    except (ValueError, TypeError):
        claim = nobody
    return {**(claim if claim.keys() >= nobody.keys() else nobody), "claim": names[-1]}


def alive(owner: dict[str, Any], folder: Path) -> bool:
    """Whether a claim's owner may still be working: its process exists here, or on another host it was not silent."""
    if not owner["pid"]:
        return False
    if owner["host"] != socket.gethostname():
        return (age := silence(folder, owner)) is None or age < SILENCE
    started = _started(owner["pid"])
    return started is not None and started == owner["started"]


def silence(folder: Path, owner: dict[str, Any]) -> float | None:
    """Seconds since an owner's last sign of life, by the file server's clock; None where no file can be made."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".now.", suffix=".tmp") as now:
            return os.stat(now.name).st_mtime - (folder / owner["claim"]).stat().st_mtime
    except OSError:
        return None


def _me(job: str) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "job": job}


def _started(pid: int) -> str | None:
    """A process's start time in clock ticks since boot, with the boot's id: a pid that was given away again differs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if stat[0] == "Z" else f"{boot}/{stat[19]}"

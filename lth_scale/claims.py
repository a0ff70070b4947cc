"""Who works on a round: numbered claim files, made exclusively. The highest owns the round and numbers its attempt."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lth_scale import files
from lth_scale.errors import UserError


def acquire(folder: Path, job: str = "none") -> int:
    """Claim a round; returns the attempt's number, from 1. ``job`` is a name that the next one is told.

    Raises UserError naming the owner's host, pid and job when another live process has it.
    """
    while True:
        owner = holder(folder)
        if owner is not None and alive(owner):
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
    attempt = acquire(folder, job) if only else 0
    try:
        yield attempt
    finally:
        if only:
            release(folder, attempt)


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


def alive(owner: dict[str, Any]) -> bool:
    """Whether a claim's owner may still be working: its process exists here, or it belongs to another host."""
    if not owner["pid"]:
        return False
    if owner["host"] != socket.gethostname():
        return True
    started = _started(owner["pid"])
    return started is not None and started == owner["started"]


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

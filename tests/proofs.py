"""What must be equal, bit for bit, between an interrupted run and one that never was; and forks to interrupt."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lth_scale import checkpoint, files
from lth_scale.checkpoint import Stored
from lth_scale.errors import UserError
from lth_scale.paths import RunPaths

DONE, USER, CRASH = 0, 2, 1
MEASURED = ("density", "tensors", "flags", "source", "clock", "end", "early_stop", "thirds", "flops", "hashes", "zeros")


def proof(root: Path) -> dict[str, Any]:
    """Everything in a run folder that its config decides: measures, curves, masks, final states, rewind points."""
    found: dict[str, Any] = {}
    for path in RunPaths(root).results():
        result, name = files.read_json(path), str(path.parent.relative_to(root))
        found[name] = {key: result[key] for key in MEASURED}
        curves = path.parent / "attempts" / f"{result['attempt']:06d}" / "metrics.csv"
        found[f"{name} curves"] = curves.read_text()
        last = checkpoint.latest(path.parent / "checkpoint")
        assert last is not None
        found[f"{name} final"] = (last[1].step, last[1].digest())
    for path in sorted(root.glob("seed_*/*/round_*/mask.safetensors")):
        found[str(path.relative_to(root))] = files.sha256_file(path)
    for path in sorted(root.glob("seed_*/rewind/step_*")):
        found[str(path.relative_to(root))] = Stored.open(path).digest()
    return found


def assert_same(root: Path, reference: dict[str, Any], what: str = "") -> None:
    found = proof(root)
    wrong = [name for name in sorted(found.keys() | reference.keys()) if found.get(name) != reference.get(name)]
    assert not wrong, f"{what}: {wrong[0]} is {found.get(wrong[0])}, uninterrupted it is {reference.get(wrong[0])}"


def leftovers(root: Path) -> list[Path]:
    """Temporaries in places where a large one would cost disk for good."""
    places = [root.glob(f"seed_*/{deep}/.*.tmp") for deep in ("rewind", "*/round_*", "*/round_*/checkpoint")]
    return [path for place in places for path in place]


def fork(work: Callable[[], object]) -> int:
    """Start a real process, with everything imported already, that does ``work``; its pid. Wait with :func:`ended`."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # what was there is the parent's: its threads are missing here, and to collect some of it crashes
    code = CRASH
    try:
        work()
        code = DONE
    except UserError as error:
        print(f"user error: {error}", file=sys.stderr)
        code = USER
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code of a forked process; -9 when it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forks(count: int, work: Callable[[int], object], limit: float = 60) -> list[int]:
    """The exit codes of processes that each do their part, by number; what has not ended in time is killed."""
    pids = [fork(partial(work, number)) for number in range(count)]
    deadline = time.monotonic() + limit
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in pids:
        if not gone(pid):
            kill(pid)
    return [ended(pid) for pid in pids]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def state(pid: int) -> str:
    """The letter that ps shows; Z also when the process is no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def gone(pid: int) -> bool:
    return state(pid) == "Z"


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

"""Slurm's own commands, called with lists of words: no string of a user's passes through a shell."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lth_scale.errors import UserError

FIELDS = (
    *("ArrayJobID", "ArrayTaskID", "JobID", "State", "Reason", "RestartCnt", "TimeLeft", "NodeList"),
    *("EndTime", "exit_code", "Comment"),
)
PATIENCE = 120  # seconds that a command of Slurm's may take

# States that no job leaves, unless by hand.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
# What would become options of these commands: of the job that this process is in, and of the user's own habits.
OPTIONS = ("SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_")


@dataclass(frozen=True)
class Element:
    """One job of a run that Slurm knows: an element of an array, or a report or chain job.

    Args:
        array: the array's id; of a job by itself its own.
        index: its place in the array, or None.
        state: Slurm's word, such as PENDING.
        reason: why it pends; or None.
        restarts: how often it was queued again.
        left: time left, as Slurm writes it.
        nodes: where it runs.
        kind: ``report``, ``chain``, or an arm.
        round: of the arm's; 0 else.
        end: when it ended, as Slurm writes it.
        code: what it ended with, such as ``exit code 1``; empty for 0.
    """

    array: str
    index: int | None
    state: str
    reason: str | None
    restarts: int
    left: str
    nodes: str
    kind: str
    round: int
    end: str = ""
    code: str = ""

    @property
    def name(self) -> str:
        """What scancel and scontrol call it."""
        return self.array if self.index is None else f"{self.array}_{self.index}"

    @property
    def live(self) -> bool:
        """Whether it pends, runs or completes."""
        return self.state not in ENDED

    @property
    def held(self) -> bool:
        """Whether it pends until somebody releases it."""
        words = f"{self.state} {self.reason}".lower()
        return self.live and ("held" in words or "hold" in words or self.state == "SPECIAL_EXIT")

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        how = f" ({self.code})" if self.code else ""
        return f"job {self.name} ended as {self.state}{how}" + (f" at {self.end}" if self.end else "")


def available() -> bool:
    """Whether Slurm's commands are here."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scancel"))


def comment(root: Path, kind: str, round: int = 0) -> str:
    """By which a job is known as one of a run's: of letters, digits and : only, whatever the folder is called."""
    return f"lth:{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}:{kind}:{round}"


def mark(root: Path) -> str:
    """What the comments of a run's jobs begin with."""
    return comment(root, "").removesuffix(":0")


def jobs(root: Path) -> list[Element]:
    """This user's jobs of a run that pend, run or complete. Raises UserError when Slurm does not answer."""
    return list(_listed(root))


def remembered(root: Path) -> list[Element]:
    """The same, and those that ended a short while ago: the controller forgets them after its MinJobAge."""
    return list(_listed(root, "--states=all"))


def _listed(root: Path, *options: str) -> Iterator[Element]:
    told = call("squeue", "--me", *options, "-r", "-h", "-O", ",".join(f"{name}:|" for name in FIELDS))
    ours = mark(root)
    for line in told.splitlines():
        row = [text.strip() for text in line.split("|")]
        if len(row) > len(FIELDS) and row[len(FIELDS) - 1].startswith(ours):
            yield from _elements(row[: len(FIELDS)])


def _elements(row: Sequence[str]) -> Iterator[Element]:
    array, index, job, state, reason, restarts, left, nodes, end, code, note = row
    _, _, kind, round = note.split(":")
    why = None if reason == "None" else reason
    one = Element(job, None, state, why, int(restarts), left, nodes, kind, int(round), moment(end), _status(code))
    yield from [replace(one, array=array, index=at) for at in indices(index)] or [one]


def indices(text: str) -> list[int]:
    """``0-2,7%4`` -> [0, 1, 2, 7]; none for a job that is in no array. A step is written ``0-6:2``."""
    found = (re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part) for part in text.partition("%")[0].split(","))
    return [at for one in found if one for at in range(int(one[1]), int(one[2] or one[1]) + 1, int(one[3] or 1))]


def moment(time: str) -> str:
    """A time that Slurm wrote, or nothing."""
    return time if time[:1].isdigit() else ""


def _status(raw: str) -> str:
    """What squeue tells is what wait(2) told."""
    number = int(raw) if raw.isdigit() else 0
    return ended_with(number >> 8 & 255, number & 127)


def ended_with(code: int, signal: int) -> str:
    """In words; empty for success."""
    return f"signal {signal}" if signal else f"exit code {code}" if code else ""


def submit(words: Sequence[str]) -> str:
    """The id of a new job. Raises UserError with what sbatch said."""
    return call("sbatch", "--parsable", *words).strip().partition(";")[0]


def cancel(names: Sequence[str]) -> None:
    """End jobs, or take them out of the queue; those that have just ended are no error."""
    for first in range(0, len(names), 500):
        call("scancel", *names[first : first + 500], may_fail=True)


def largest_array() -> int:
    """Indices stay below it."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else 1001


def call(*words: str, may_fail: bool = False, patience: float = PATIENCE) -> str:
    """What a command prints. Raises UserError with its error."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=patience)
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not here: on a cluster's login node it is, or see slurm/local-cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]} did not answer for {patience:.0f} s; the same command goes on later") from None
    if done.returncode and not may_fail:
        raise UserError(f"{words[0]} refused: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def environment() -> dict[str, str]:
    """Without what would become options of these commands; lists of array elements are written in full."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    found = {name: value for name, value in os.environ.items() if not name.startswith(OPTIONS) or name in kept}
    return found | {"SLURM_BITSTR_LEN": "0"}


def shown(words: Sequence[str], number: int) -> str:
    """An sbatch call as a line of shell that keeps the job's id for those that name it."""
    quoted = [f'"{word}"' if word.startswith("--dependency=") else shlex.quote(word) for word in words]
    return f"job{number}=$(sbatch --parsable {' '.join(quoted)})"

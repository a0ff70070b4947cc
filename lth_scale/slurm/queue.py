"""Slurm's own commands, called with lists of words: no string of a user's passes through a shell."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lth_scale.errors import UserError

FIELDS = ("ArrayJobID", "ArrayTaskID", "JobID", "State", "Reason", "RestartCnt", "TimeLeft", "NodeList", "Comment")
PATIENCE = 120  # seconds that a command of Slurm's may take


@dataclass(frozen=True)
class Element:
    """One job of a run in the queue: an element of an array, or a report or chain job.

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

    @property
    def name(self) -> str:
        """What scancel and scontrol call it."""
        return self.array if self.index is None else f"{self.array}_{self.index}"


def available() -> bool:
    """Whether Slurm's commands are here."""
    return all(shutil.which(name) for name in ("sbatch", "squeue", "scancel"))


def comment(root: Path, kind: str, round: int = 0) -> str:
    """By which a job is known as one of a run's: of letters, digits and : only, whatever the folder is called."""
    return f"lth:{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}:{kind}:{round}"


def jobs(root: Path) -> list[Element]:
    """This user's jobs of a run that pend, run or complete. Raises UserError when Slurm does not answer."""
    prefix = comment(root, "").removesuffix(":0")
    told = call("squeue", "--me", "-r", "-h", "-O", ",".join(f"{name}:|" for name in FIELDS))
    rows = [line.split("|") for line in told.splitlines()]
    return [_element(row) for row in rows if len(row) > len(FIELDS) and row[8].startswith(prefix)]


def _element(row: Sequence[str]) -> Element:
    array, index, job, state, reason, restarts, left, nodes, note = (text.strip() for text in row[: len(FIELDS)])
    _, _, kind, round = note.split(":")
    element = int(index) if index.isdigit() else None
    why = None if reason == "None" else reason
    return Element(
        array if element is not None else job, element, state, why, int(restarts), left, nodes, kind, int(round)
    )


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


def call(*words: str, may_fail: bool = False) -> str:
    """What a command prints. Raises UserError with its error."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    except FileNotFoundError:
        raise UserError(
            f"{words[0]} is not here: on a cluster's login node it is, or see slurm/local-cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{words[0]} did not answer for {PATIENCE} s; the same command goes on later") from None
    if done.returncode and not may_fail:
        raise UserError(f"{words[0]} refused: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout


def environment() -> dict[str, str]:
    """Without what Slurm has told this process of its own job, which would become options of the next."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS")
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name in kept}


def shown(words: Sequence[str], number: int) -> str:
    """An sbatch call as a line of shell that keeps the job's id for those that name it."""
    quoted = [f'"{word}"' if word.startswith("--dependency=") else shlex.quote(word) for word in words]
    return f"job{number}=$(sbatch --parsable {' '.join(quoted)})"

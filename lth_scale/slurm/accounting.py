"""How jobs ended that the controller has forgotten: from Slurm's accounting, on clusters that have it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from lth_scale.errors import UserError
from lth_scale.slurm import queue
from lth_scale.slurm.queue import ENDED, Element

# The last two may hold our comment: the first where the site keeps comments, the second since Slurm 21.08.
FIELDS = ("JobID", "State", "ExitCode", "End", "Comment", "SubmitLine")
PATIENCE = 20  # seconds; a table without it is better than none


def ended(root: Path, since: float) -> list[Element]:
    """This user's jobs of a run that ended after ``since`` (Unix time). None where there is no accounting."""
    begin = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    words = ["sacct", "-X", "-P", "-n", f"--uid={os.getuid()}", f"--starttime={begin}", f"--format={','.join(FIELDS)}"]
    try:
        told = queue.call(*words, patience=PATIENCE)
    except UserError:
        return []
    return [job for line in told.splitlines() for job in _elements(line, queue.mark(root))]


def _elements(line: str, mark: str) -> Iterator[Element]:
    """The elements that a line tells of: many where an array was cancelled before it began."""
    row = line.split("|", 4)
    ours = re.search(rf"{mark}([\w-]+):(\d+)", row[-1])
    if len(row) < 5 or not ours or (state := row[1].split(" ")[0]) not in ENDED:
        return
    array, _, element = row[0].partition("_")
    code = queue.ended_with(*map(int, row[2].split(":"))) if re.fullmatch(r"\d+:\d+", row[2]) else ""
    for at in queue.indices(element.strip("[]")):
        yield Element(array, at, state, None, 0, "", "", ours[1], int(ours[2]), queue.moment(row[3]), code)

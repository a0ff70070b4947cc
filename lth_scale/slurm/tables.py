"""What ``lth status`` shows: a line for each round of each arm, and what stands in the way of the others."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lth_scale import status
from lth_scale.paths import RunPaths
from lth_scale.slurm.state import STUCK, Known, Seen

MANY = 5  # things said of a row
CAUSES = 20


def shown(root: Path, seen: Seen) -> Group:
    """Everything. Of a run that was never submitted a count by arm, and only the rounds of which there is more to say.

    Args:
        root: the run folder.
        seen: its tasks.
    """
    parts: list[Table | Text] = []
    if not seen.heard.sent:
        parts.append(status.summary(root, [(known.arm, known.state) for known in seen.tasks]))
    made = rounds(root, seen)
    if made.row_count:
        parts.append(made)
    return Group(*parts, *(Text(line) for line in _lines(root, seen)))


def rounds(root: Path, seen: Seen) -> Table:
    """A line for each round of each arm: how many seeds are in which state, and what there is to say."""
    made = Table(title=str(root) if seen.heard.sent else None, title_justify="left")
    for column in ("arm", "round", "seeds", "accuracy %", "to know"):
        made.add_column(column, justify="right" if column in ("round", "accuracy %") else "left")
    for arm, number in dict.fromkeys((known.arm, known.round) for known in seen.tasks):
        row = [known for known in seen.tasks if (known.arm, known.round) == (arm, number)]
        states = [known.state for known in row]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        accuracies = [known.accuracy for known in row if known.accuracy is not None]
        mean = f"{100 * sum(accuracies) / len(accuracies):.2f}" if accuracies else ""
        said = [text for text in dict.fromkeys(map(_said, row)) if text]
        more = [f"and {len(said) - MANY} more"] if len(said) > MANY else []
        if seen.heard.sent or any(known.state != "waiting" and _said(known) for known in row):
            made.add_row(arm, str(number), counts, mean, Text("; ".join([*said[:MANY], *more])))
    return made


def _said(known: Known) -> str:
    """What there is to say of one task; of those that are blocked the lines below say it."""
    times = "time" if known.requeued == 1 else "times"
    again = f", requeued {known.requeued} {times}" if known.requeued else ""
    at = f" at step {known.step} of {known.steps}" if known.step is not None else ""
    on = f" on {known.nodes}" if known.nodes else ""
    left = f", {known.left} left" if (known.left or "")[:1].isdigit() else ""  # else UNLIMITED, or INVALID: over it
    why = f" ({known.why})" if known.why else ""
    if known.state == "running":
        return f"seed {known.seed}{at}{on}{left}{again}{why}"
    if known.state == "waiting" and known.task.needs:
        return f"waiting for {' and '.join(f'{need.arm} round {need.round}' for need in known.task.needs)}"
    if known.state == "queued" and not again:
        return f"queued{why}"
    worth_saying = known.state in ("done", "stopped", "ready") and known.why
    if known.state in ("failed", "held", "interrupted", "queued") or worth_saying:
        return f"seed {known.seed} {known.state}{at}{again}{why}"
    return ""


def _lines(root: Path, seen: Seen) -> Iterator[str]:
    blocked = Counter(known.by for known in seen.tasks)
    causes = [known for known in seen.stuck if blocked[known.task]]
    for cause in causes[:CAUSES]:
        count = blocked[cause.task]
        yield f"{cause.task} {STUCK[cause.state]}: it blocks {count} task{'s' if count > 1 else ''}"
    if len(causes) > CAUSES:
        yield f"and {len(causes) - CAUSES} more such; --json tells of all"
    held = [str(known.job) for known in seen.stuck if known.state == "held"]
    if held:
        yield f"to release what is held: scontrol release {' '.join(held[:MANY])}{' ...' if held[MANY:] else ''}"
    for job in seen.heard.others:
        what = "makes the report" if job.kind == "report" else "submits the rest"
        yield f"job {job.name} {what} after the others: {job.state.lower()}"
    if not seen.heard.asked:
        why = f"{seen.heard.note}: this is" if seen.heard.note else "this is"
        age = status.newest(root)
        yield f"{why} what the folder proves" + ("" if age is None else f"; its newest file is {status.ago(age)} old")


def resume(root: Path) -> str:
    """The line that submits whatever is missing."""
    cluster = RunPaths(root).submit.cluster
    return shlex.join(["lth", "submit", str(RunPaths(root).config), "--out", str(root), "--cluster", str(cluster)])


def following(root: Path, seen: Seen) -> str:
    """What to type next."""
    if any(known.state != "held" for known in seen.stuck):
        again = shlex.join(["lth", "run", str(RunPaths(root).config), "--out", str(root)])
        return f"{resume(root) if seen.heard.sent else again} goes on"
    return f"lth status {root} --watch" if seen.busy else f"lth report {root}"

"""Tickets that lie with a tracking service: brought into a folder beside the run, once, by a process of their own."""

from __future__ import annotations

import re
from pathlib import Path

from lth_scale import files
from lth_scale.errors import UserError
from lth_scale.processes import heard, program

SCHEME = "wandb:"
SHAPE = re.compile(r"wandb:(\w[\w.-]*)/(\w[\w.-]*)/(\w[\w.-]*)(?::(\w[\w.-]*))?")
NOTE = "source.json"
PATIENCE = 60.0  # seconds for the service to tell what there is
EVERY = "all"


def fetched(place: str, beside: Path) -> str:
    """A folder of tickets for ``wandb:ENTITY/PROJECT/NAME[:VERSION]``; any other place as it is.

    What VERSION (a number such as v3, or an alias) or its absence (all tickets of the experiment) means is decided the
    first time, written down, and from then on neither asked for nor changed.

    Args:
        place: what the user named.
        beside: the folder that holds the runs, whose ``.tickets`` the folder is made in.

    Raises:
        UserError: a name that is none; or there is nothing of that name, no key, no answer, or a damaged file.
    """
    if not place.startswith(SCHEME):
        return place
    if not (parts := SHAPE.fullmatch(place)):
        raise UserError(f"transfer.sources: {place!r} is not valid; write wandb:ENTITY/PROJECT/NAME:v3, or without :v3")
    entity, project, name, version = parts.groups()
    folder = beside / ".tickets" / entity / project / name / (version or EVERY)
    if not (folder / NOTE).exists():
        print(f"{place}: bringing its tickets into {folder}")
        words = [f"{entity}/{project}/{name}", version or EVERY, str(folder), str(PATIENCE)]
        code, said = heard([*program("tracking.bringing"), *words])
        if code:
            raise UserError(f"transfer.sources: {place}: {said}")
    return str(folder)


def alias(seed: int, number: int) -> str:
    """What a version of a ticket is called by, whatever number the service gave it."""
    return f"s{seed}-r{number:02d}"


def brought(place: Path) -> dict[str, str]:
    """What of a folder came from where: sSEED-rROUND -> ENTITY/PROJECT/NAME:vN; empty of other places."""
    note = place / NOTE
    return dict(files.read_json(note)) if note.exists() else {}

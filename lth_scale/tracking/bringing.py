"""``python -m lth_scale.tracking.bringing ENTITY/PROJECT/NAME VERSION FOLDER LIMIT``: tickets from W&B, into a folder.

The last line it prints tells people what is wrong; :mod:`lth_scale.transfer.fetching` starts it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lth_scale import files
from lth_scale.errors import UserError
from lth_scale.processes import end_children
from lth_scale.transfer.fetching import EVERY, NOTE, alias

if TYPE_CHECKING:
    from lth_scale.tickets import Ticket

FAILED = 2  # exit code


def main(name: str, version: str, folder: Path, limit: float) -> None:
    """Download the chosen versions and the theta_k that each names, check all of it, and note where it is from.

    Raises UserError naming what is not there or not whole; nothing else is left in the folder then.
    """
    import wandb

    service = wandb.Api()
    chosen = _chosen(_versions(service, name, "ticket"), name, version)
    signal.setitimer(signal.ITIMER_REAL, 0)  # it answers; how long files take depends on how large they are
    files.make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        held = {artifact: _whole(artifact, Path(scratch)) for artifact in chosen}
        held |= _theta_k(service, name, [ticket for _, ticket in held.values()], Path(scratch))
        placed = {_alias(ticket): (path, artifact) for artifact, (path, ticket) in held.items()}
        for key, (path, _) in placed.items():
            os.replace(path, folder / f"{key}.safetensors")
    note = {key: artifact.qualified_name for key, (_, artifact) in placed.items()}
    files.write_json(folder / NOTE, note)


def _versions(service: Any, name: str, kind: str) -> list[Any]:
    """All of an artifact. Raises UserError naming those that there are instead."""
    if service.artifact_collection_exists(name, kind):
        return list(service.artifacts(kind, name))
    project = name.rpartition("/")[0]
    there: list[str] = []
    with suppress(ValueError, AttributeError):  # no such project, or none of the kind in it
        there = [found.name for found in service.artifact_collections(project, kind)]
    raise UserError(f"{project} has no {kind} of that name; choose from: {', '.join(sorted(there)) or 'none'}")


def _chosen(versions: list[Any], name: str, version: str) -> list[Any]:
    """The one of a number or an alias; of EVERY, those that are called by seed and round."""
    named = [found for found in versions if any(re.fullmatch(r"s\d+-r\d+", word) for word in found.aliases)]
    chosen = named if version == EVERY else [a for a in versions if version == a.version or version in a.aliases]
    if not chosen:
        there = [" = ".join([found.version, *found.aliases]) for found in versions]
        raise UserError(f"{name} has no version {version}; choose from: {', '.join(there) or 'none'}")
    return chosen


def _whole(artifact: Any, scratch: Path) -> tuple[Path, Ticket]:
    """The ticket file of a version. Raises UserError unless it is one, of a run, and what its checksums say."""
    from lth_scale import settings, tickets  # after the service has answered: they take a second to import

    folder = scratch / artifact.id
    artifact.download(str(folder), skip_cache=True)
    found = [path for path in folder.rglob("*") if path.is_file()]
    if len(found) != 1:
        raise UserError(f"{artifact.qualified_name} holds {len(found)} files, not one ticket file")
    try:
        ticket = tickets.load(found[0])
        settings.read_text(ticket.config, artifact.qualified_name)
        _alias(ticket)
    except UserError as error:
        raise UserError(str(error).replace(str(found[0]), artifact.qualified_name)) from None
    return found[0], ticket


def _alias(ticket: Ticket) -> str:
    about = ticket.provenance
    if not all(isinstance(about.get(key), int) for key in ("seed", "round")):
        raise UserError("the ticket does not say its seed and round")
    return alias(about["seed"], about["round"])


def _theta_k(service: Any, name: str, held: list[Ticket], scratch: Path) -> dict[Any, tuple[Path, Ticket]]:
    """Where the tickets start that do not hold it themselves: by the hash that each names."""
    bare = [ticket.provenance for ticket in held if "theta_k" not in ticket.states]
    if any("theta_k_of_run" not in about for about in bare):
        raise UserError(f"{name} neither holds theta_k nor names one, from which its tickets would start")
    wanted = {about["theta_k_of_run"]: f"{name.rpartition('/')[0]}/{about['run']}.theta_k" for about in bare}
    return dict(_starts(service, wanted, scratch))


def _starts(service: Any, wanted: dict[str, str], scratch: Path) -> Iterator[tuple[Any, tuple[Path, Ticket]]]:
    for digest, name in wanted.items():
        found = [a for a in _versions(service, name, "theta_k") if a.metadata.get("theta_k_of_run") == digest]
        if not found:
            raise UserError(f"{name} has no version {digest[:12]}, from which the ticket starts; log it again")
        yield found[0], _whole(found[0], scratch)


def _late(limit: float) -> None:
    """End with the client's own process, which would go on trying."""
    print(f"W&B did not answer within {limit:g} s; nothing was brought", flush=True)
    end_children("self")
    os._exit(FAILED)


if __name__ == "__main__":
    limit = float(sys.argv[4])
    signal.signal(signal.SIGALRM, lambda *_: _late(limit))
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), limit)
    except UserError as error:
        print(error)
        sys.exit(FAILED)
    except Exception as error:  # whatever the client meets: no key, no network, an answer it cannot read
        print(f"W&B: {type(error).__name__}: {' '.join(str(error).split())}")
        sys.exit(FAILED)

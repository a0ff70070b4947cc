"""A round's checkpoints: which is the latest that is sound, and when older ones go. Ranks do all of it together."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lth_scale import files, world
from lth_scale.checkpoint.stored import Stored
from lth_scale.checkpoint.writing import Part, save
from lth_scale.errors import UserError


def candidates(folder: Path) -> list[Path]:
    """Checkpoints of a round, highest (step, attempt) first; nothing is said about their soundness."""
    named = ((re.fullmatch(r"step_(\d+)\.attempt_(\d+)", path.name), path) for path in folder.glob("step_*.attempt_*"))
    found = [((int(name[1]), int(name[2])), path) for name, path in named if name and path.is_dir()]
    return [path for _, path in sorted(found, reverse=True)]


def opened(folder: Path) -> Stored:
    """Collective: a saved state whose files were all verified, each by one rank.

    Raises UserError on all ranks, naming a missing or damaged file.
    """
    with world.together():
        stored = Stored.open(folder)
        stored.verify(stored.ranks[world.rank() :: world.size()])
    stored.trust()
    return stored


def sound(folder: Path) -> bool:
    """Collective: whether a saved state is there and its checksums hold."""
    try:
        opened(folder)
    except UserError:
        return False
    return True


def latest(folder: Path) -> tuple[Path, Stored] | None:
    """Collective: the highest step whose files verify; damaged ones are passed over, loudly."""
    for path in world.on_first(lambda: candidates(folder)):
        try:
            return path, opened(path)
        except UserError as error:
            if world.first():
                print(f"warning: {error}; going back to an earlier checkpoint", file=sys.stderr, flush=True)
    return None


def final(folder: Path, marker: Path) -> Stored:
    """Collective: the end of a round that is done, as its ``marker`` says. Raises UserError if it is gone."""
    found = latest(folder)
    if found is None:
        raise UserError(f"{folder} holds no sound checkpoint; remove {marker} to train it anew")
    return found[1]


def publish(
    folder: Path,
    parts: Iterable[Part],
    step: int,
    attempt: int,
    extra: Mapping[str, Any],
    guard: Callable[[], None] = lambda: None,
) -> Path:
    """Collective: save ``step_NNNNNNNN.attempt_N``, verify it, and only then remove older ones; where it lies.

    ``guard`` is called on the first rank before anything appears or goes; its error prevents that.
    """
    path = named(folder, step, attempt)
    save(path, parts, step, extra, guard)
    opened(path)
    world.on_first(lambda: remove_older(path, guard))
    return path


def named(folder: Path, step: int, attempt: int) -> Path:
    """Where a checkpoint lies."""
    return folder / f"step_{step:08d}.attempt_{attempt}"


def remove_older(path: Path, guard: Callable[[], None] = lambda: None) -> None:
    """Remove the checkpoints of earlier steps and attempts, now that this one is sound, if ``guard`` lets it."""
    guard()
    every = candidates(path.parent)
    for old in every[every.index(path) + 1 :]:  # none of a later attempt's
        files.remove_folder(old)

"""What is exported: a round's final weights, or where it started, of a run folder; or any saved state by its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lth_scale import checkpoint, files
from lth_scale.checkpoint import MANIFEST, Source, Stored
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.tickets import done_round, first_seed, theta_k


@dataclass(frozen=True)
class Chosen:
    """A state to export.

    Args:
        state: its mask applied.
        about: what a reader should know of it, as texts.
    """

    state: Source
    about: dict[str, str]


def choose(place: Path, seed: int | None, arm: str, number: int | None, theta: bool) -> Chosen:
    """Find a state.

    Args:
        place: a run folder, or the folder of a saved state.
        seed: replicate; None means the first.
        arm: as in the run folder, such as ``ticket`` or ``reinit-2``.
        number: the round; None means the last one done.
        theta: the rewind point under the round's mask, instead of the weights at its end.

    Raises:
        UserError: naming what is not there, and what is, or a damaged file.
    """
    if (place / MANIFEST).exists():
        return Chosen(Stored.open(place), {"source": place.name})
    run = RunPaths(place)
    if not run.config.exists():
        raise UserError(f"{place} is neither a run folder nor a saved state ({MANIFEST} is missing)")
    seed = first_seed(run) if seed is None else seed
    return _of_round(run, seed, arm, done_round(run, seed, arm, number), theta)


def _of_round(run: RunPaths, seed: int, arm: str, number: int, theta: bool) -> Chosen:
    paths, ticket = run.round(seed, arm, number), run.round(seed, "ticket", number)
    told = files.read_json(paths.result)
    about = {"seed": str(seed), "arm": arm, "round": str(number), "density": repr(told["density"])}
    about |= {"mask": told["hashes"]["mask"], "theta_k": told["source"]["theta_k"]}
    state = theta_k(run, seed, told["source"]["theta_k"]) if theta else _final(paths.checkpoints)
    if number:
        state = state.masked(Mask.load(paths.mask if paths.mask.exists() else ticket.mask))
    return Chosen(state, about | {"at": "theta_k" if theta else f"step {told['clock']['end']}"})


def _final(folder: Path) -> Source:
    found = checkpoint.latest(folder)
    if found is None:
        raise UserError(f"{folder} holds no sound checkpoint")
    return found[1]

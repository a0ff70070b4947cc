"""What is exported: a round's final weights, or where it started, of a run folder; a ticket file; any saved state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lth_scale import checkpoint, files, tickets
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
        mask: None where nothing is pruned, or nothing says what is.
        config: as YAML; empty where none is known.
    """

    state: Source
    about: dict[str, str]
    mask: Mask | None = None
    config: str = ""

    def needed(self, what: str) -> Mask:
        """The mask. Raises UserError, naming what needs it, where there is none."""
        if self.mask is None:
            raise UserError(f"{what} needs a mask, which the dense round and a saved state have not")
        return self.mask

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights and buffers by name, in memory."""
        held = self.state.whole()
        return {**held.weights, **held.buffers}


def choose(place: Path, seed: int | None, arm: str, number: int | None, theta: bool) -> Chosen:
    """Find a state.

    Args:
        place: a run folder, a ticket file, or the folder of a saved state.
        seed: replicate; None means the first.
        arm: as in the run folder, such as ``ticket`` or ``reinit-2``.
        number: the round; None means the last one done.
        theta: the rewind point under the round's mask, instead of the weights at its end.

    Raises:
        UserError: naming what is not there, and what is, or a damaged file.
    """
    if (place / MANIFEST).exists():
        return Chosen(Stored.open(place), {"source": place.name})
    if place.is_file():
        return _of_ticket(place)
    run = RunPaths(place)
    if not run.config.exists():
        raise UserError(f"{place} is no run folder, no ticket file and no saved state ({MANIFEST} is missing)")
    seed = first_seed(run) if seed is None else seed
    return _of_round(run, seed, arm, done_round(run, seed, arm, number), theta)


def _of_round(run: RunPaths, seed: int, arm: str, number: int, theta: bool) -> Chosen:
    paths, ticket = run.round(seed, arm, number), run.round(seed, "ticket", number)
    told = files.read_json(paths.result)
    about = {"seed": str(seed), "arm": arm, "round": str(number), "density": repr(told["density"])}
    about |= {"mask": told["hashes"]["mask"], "theta_k": told["source"]["theta_k"]}
    state = theta_k(run, seed, told["source"]["theta_k"]) if theta else _final(paths.checkpoints)
    about |= {"at": "theta_k" if theta else f"step {told['clock']['end']}"}
    config = run.config.read_text()
    if not number:
        return Chosen(state, about, None, config)
    mask = Mask.load(paths.mask if paths.mask.exists() else ticket.mask)
    return Chosen(state.masked(mask), about, mask, config)


def _of_ticket(path: Path) -> Chosen:
    """Its trained weights, where it has them, else where it starts."""
    ticket = tickets.load(path)
    part = next((part for part in ("theta_T", "theta_k") if part in ticket.states), None)
    if part is None:
        raise UserError(f"{path} holds a mask alone, no weights; there is nothing to export")
    about = {"ticket": path.name, "at": part, "density": repr(ticket.mask.density), "mask": ticket.checksums["mask"]}
    return Chosen(ticket.states[part].masked(ticket.mask), about, ticket.mask, ticket.config)


def _final(folder: Path) -> Source:
    found = checkpoint.latest(folder)
    if found is None:
        raise UserError(f"{folder} holds no sound checkpoint")
    return found[1]

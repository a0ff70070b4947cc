"""Tickets wherever they lie: in a run folder, in a ticket file, or as a mask alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lth_scale import checkpoint, files
from lth_scale.checkpoint import Source, Stored
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.tickets.file import Ticket, is_ticket, load

MEASURED = ("hashes.mask", "source.theta_k", "tensors", "end.test.accuracy")
"""What is read of a result.json."""


def find(place: str, end: bool = False) -> Ticket:
    """The ticket of ``RUN``, ``RUN:seed=S``, ``RUN:seed=S,round=R``, of a ticket file or of a mask file.

    Args:
        end: of a run folder theta_T too, where it is at hand.

    Raises:
        UserError: naming what is not there, or a damaged file.
    """
    path, chosen = _parsed(place)
    if path.is_dir():
        return of_run(path, chosen.get("seed"), chosen.get("round"), end)
    if chosen:
        raise UserError(f"{path} is no run folder, of which a seed and a round could be chosen")
    return load(path) if is_ticket(path) else Ticket(Mask.load(path))


def _parsed(place: str) -> tuple[Path, dict[str, int]]:
    """(Path, what is chosen of it); a path that exists is taken as it stands."""
    before, colon, behind = place.rpartition(":")
    if not colon or Path(place).exists():
        return Path(place), {}
    chosen = dict(pair.partition("=")[::2] for pair in behind.split(","))
    if not chosen.keys() <= {"seed", "round"} or not all(value.isdecimal() for value in chosen.values()):
        raise UserError(f"{place} does not exist, and {behind!r} chooses nothing; write RUN:seed=0,round=3")
    return Path(before), {key: int(value) for key, value in chosen.items()}


def of_run(root: Path, seed: int | None, number: int | None, end: bool = False) -> Ticket:
    """A run folder's ticket.

    Args:
        seed: replicate; None means the first.
        number: the round that trains, or would train, the ticket; None means the last one done, 0 is the dense network.
        end: theta_T too, where it is at hand.
    """
    run = RunPaths(root)
    if not run.config.exists():
        raise UserError(f"{root} is not a run folder: config.yaml is missing")
    seed = first_seed(run) if seed is None else seed
    if number is None or not run.round(seed, "ticket", number).mask.exists():
        number = done_round(run, seed, "ticket", number)
    paths = run.round(seed, "ticket", number)
    dense = _told(run.round(seed, "ticket", done_round(run, seed, "ticket", 0)).result, *MEASURED)
    told = _told(paths.result, *MEASURED) if paths.result.exists() else {}
    state = theta_k(run, seed, dense["source"]["theta_k"])
    mask = Mask.load(paths.mask) if number else _everything(dense, state)
    if told and told["hashes"]["mask"] != mask.sha256():
        raise UserError(f"{paths.mask} is not the mask that {paths.result} names; restore it")
    states: dict[str, Source] = {"theta_k": state}
    if end and told and (last := checkpoint.latest(paths.checkpoints)):
        states["theta_T"] = last[1]
    about = {"from": "run", "run": root.resolve().name, "seed": seed, "round": number, "k": state.step}
    about |= {"theta_k_of_run": dense["source"]["theta_k"], "density": mask.density}
    about["accuracy"] = {"dense": _accuracy(dense), "ticket": _accuracy(told)}
    return Ticket(mask, states, run.config.read_text(), about | _data(run))


def _everything(dense: dict[str, Any], state: Source) -> Mask:
    shapes = state.entries()
    return Mask.ones({name: shapes[f"weights/{name}"].shape for name in dense["tensors"]})


def _accuracy(told: dict[str, Any]) -> float | None:
    """On the test set, at the end of a round, in [0, 1]."""
    return told["end"]["test"]["accuracy"] if told else None


def _data(run: RunPaths) -> dict[str, str]:
    """The checksum of the data, which tells two data sets of one name apart."""
    return {"data": _told(run.provenance, "data")["data"]} if run.provenance.exists() else {}


def _told(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON file that holds these, as ``key.key``. Raises UserError naming a file that is missing or damaged."""
    told = files.read_json(path)
    for key in keys:
        held = told
        for part in key.split("."):
            if not isinstance(held, dict) or part not in held:
                raise UserError(f"{path} is damaged (it lacks {key}); restore it")
            held = held[part]
    return dict(told)


def done_round(run: RunPaths, seed: int, arm: str, number: int | None) -> int:
    """A round that is done; None means the last one. Raises UserError naming those that are, unless it is."""
    done = [int(p.parent.name[6:]) for p in run.results() if p.parts[-4:-2] == (f"seed_{seed}", arm)]
    number = max(done, default=None) if number is None else number
    if number not in done:
        rounds = ", ".join(map(str, sorted(done))) or "none"
        raise UserError(f"{run.root}: seed {seed} {arm} round {number} is not done; done are: {rounds}")
    assert number is not None
    return number


def first_seed(run: RunPaths) -> int:
    """The first replicate with a round that is done. Raises UserError where there is none."""
    seeds = sorted(int(path.parts[-4][5:]) for path in run.results())
    if not seeds:
        raise UserError(f"{run.root}: no round is done yet; lth status {run.root}")
    return seeds[0]


def theta_k(run: RunPaths, seed: int, digest: str) -> Source:
    """The rewind point that a round names; the config may say it in epochs. Raises UserError where it is gone."""
    folder = run.rewind(seed, 0).parent
    for path in sorted(folder.glob("step_*"), reverse=True):
        if (state := Stored.open(path)).digest() == digest:
            return state
    raise UserError(f"{folder} no longer holds the rewind point {digest[:12]} that the round names")

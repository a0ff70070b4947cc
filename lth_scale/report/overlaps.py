"""How alike the masks of tickets are: between replicates, rounds and runs, beside what chance gives.

Masks are looked at through their files' maps, weights are read by ranges: neither need fit in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from math import isclose, nan, prod
from typing import Any

import pandas as pd

from lth_scale.checkpoint import Source, Stored, latest
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RoundPaths, RunPaths
from lth_scale.report.layers import rewind_step, spread
from lth_scale.report.reading import SAME, RunResults
from lth_scale.tickets import Overlap, compare, signs
from lth_scale.tickets.units import ALL as ALL
from lth_scale.tickets.units import matched_jaccards

REPLICATES = 3
ROUNDS = 6
COLUMNS = [
    "kind", "run", "other_run", "replicate", "other_replicate", "round", "other_round", "density", "tensor",
    "numel", "kept", "other_kept", "common", "jaccard", "chance", "matched", "matched_chance",
    "signs_theta_k", "signs_theta_T",
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """One ticket's mask: of a run's replicate in a round."""

    run: RunResults
    seed: int
    round: int

    @property
    def paths(self) -> RoundPaths:
        """Its files."""
        return RunPaths(self.run.root).round(self.seed, "ticket", self.round)

    @property
    def stored(self) -> bool:
        """Whether its mask is still there."""
        return (self.seed, "ticket", self.round) in self.run.by_key and self.paths.mask.is_file()

    @cached_property
    def mask(self) -> Mask:
        """Raises UserError when it is damaged."""
        return Mask.load(self.paths.mask)

    @property
    def tensors(self) -> Mapping[str, Mapping[str, int]]:
        """Name -> kept and numel, without the mask."""
        found: Mapping[str, Mapping[str, int]] = self.run.by_key[self.seed, "ticket", self.round]["tensors"]
        return found

    @cached_property
    def states(self) -> dict[str, Source]:
        """theta_k and theta_T, those that are still there."""
        theta = RunPaths(self.run.root).rewind(self.seed, rewind_step(self.run))
        found: dict[str, Source] = {"theta_k": Stored.open(theta)} if theta.is_dir() else {}
        if end := latest(self.paths.checkpoints):
            found["theta_T"] = end[1]
        return found


def shown_rounds(run: RunResults) -> list[int]:
    """At most ROUNDS of the ticket's pruned rounds, the first and the last among them."""
    return spread([number for number in run.rounds("ticket") if number], ROUNDS)


def within(run: RunResults) -> pd.DataFrame:
    """Tidy overlaps of one run: replicates at equal rounds; rounds of its first replicate unless they are nested.

    One row per pair of masks and tensor, and one over all with ``tensor`` = ALL; of at most REPLICATES replicates and
    ROUNDS rounds. ``jaccard`` and ``chance`` as in tickets.Overlap; ``signs_...`` is the share of the weights kept by
    both whose signs agree, at the last round only; there ``matched`` and ``matched_chance`` too, the Jaccard after
    matching hidden units, where tickets.units can. The columns are COLUMNS; no row where the masks are gone.

    Raises:
        UserError: naming a damaged file.
    """
    rows: list[dict[str, Any]] = []
    seeds, numbers = run.seeds[:REPLICATES], shown_rounds(run)
    for number in numbers:
        places = [place for seed in seeds if (place := Place(run, seed, number)).stored]
        for one, other in combinations(places, 2):
            rows += _rows("replicates", one, other, closely=number == numbers[-1])
    chain = [place for seed in seeds[:1] for n in numbers if (place := Place(run, seed, n)).stored]
    for one, other in pairwise(chain):
        if not other.mask.within(one.mask):
            rows += _rows("rounds", one, other)
    return pd.DataFrame(rows, columns=COLUMNS)


def between(runs: Sequence[RunResults]) -> pd.DataFrame:
    """The same of every two runs: equal replicates, equal densities of those tensors that both networks have."""
    rows: list[dict[str, Any]] = []
    for first, second in combinations(runs, 2):
        seeds = [seed for seed in first.seeds if seed in second.seeds][:REPLICATES]
        pairs = [pair for seed in seeds for pair in _equal(first, second, seed)]
        last = max((one.round for one, _ in pairs), default=0)
        for one, other in pairs:
            rows += _rows("runs", one, other, closely=one.round == last)
    return pd.DataFrame(rows, columns=COLUMNS)


def _equal(first: RunResults, second: RunResults, seed: int) -> Iterator[tuple[Place, Place]]:
    """Those of one replicate whose density is the same in both runs."""
    there = [place for n in second.rounds("ticket") if n and (place := Place(second, seed, n)).stored]
    for one in (Place(first, seed, number) for number in shown_rounds(first)):
        for other in there if one.stored else ():
            names = _common(one, other)
            if names and isclose(_density(one, names), _density(other, names), rel_tol=SAME):
                yield one, other
                break


def _common(one: Place, other: Place) -> list[str]:
    """Tensors of one name and size."""
    theirs = other.tensors
    return [name for name, t in one.tensors.items() if theirs.get(name, {}).get("numel") == t["numel"]]


def _density(place: Place, names: Sequence[str]) -> float:
    tensors = [place.tensors[name] for name in names]
    return sum(t["kept"] for t in tensors) / sum(t["numel"] for t in tensors)


def _part(mask: Mask, names: Sequence[str]) -> Mask:
    shapes = {name: mask.shapes[name] for name in names}
    return Mask.of(shapes, {name: mask.range(name, 0, prod(shape)) for name, shape in shapes.items()})


def _rows(kind: str, one: Place, other: Place, closely: bool = False) -> Iterator[dict[str, Any]]:
    mine, theirs = one.mask.shapes, other.mask.shapes
    names = [name for name in _common(one, other) if name in mine and mine[name] == theirs.get(name)]
    if not names:
        return
    masks = _part(one.mask, names), _part(other.mask, names)
    found = compare(*masks)
    agree = _signs(one, other, masks) if closely else {}
    alike = _matched(*masks) if closely and kind == "replicates" else {}
    key: dict[str, Any] = {"kind": kind, "run": one.run.name, "other_run": other.run.name}
    key |= {"replicate": one.seed, "other_replicate": other.seed, "round": one.round, "other_round": other.round}
    key |= {"density": _density(one, names)}
    for name, overlap in [(ALL, Overlap.total(found.values())), *found.items()]:
        shares = {f"signs_{p}": _share(counts, name, overlap.common) for p, counts in agree.items()}
        units = dict(zip(("matched", "matched_chance"), alike.get(name, (nan, nan)), strict=True))
        yield key | {"tensor": name, **_numbers(overlap), **units, **shares}


def _matched(one: Mask, other: Mask) -> dict[str, tuple[float, float]]:
    """Of networks that were initialised differently, whose hidden units are in different orders."""
    try:
        return matched_jaccards(one, other)
    except UserError:  # no chain of fully connected layers
        return {}


def _numbers(overlap: Overlap) -> dict[str, Any]:
    a, b = overlap.kept
    sizes = {"numel": overlap.numel, "kept": a, "other_kept": b, "common": overlap.common}
    return sizes | {"jaccard": overlap.jaccard, "chance": overlap.chance}


def _signs(one: Place, other: Place, masks: tuple[Mask, Mask]) -> dict[str, dict[str, int]]:
    """State -> tensor -> common survivors of equal sign."""
    return {
        part: {n: signs(n, (masks[0], one.states[part]), (masks[1], other.states[part])) for n in masks[0]}
        for part in ("theta_k", "theta_T")
        if part in one.states and part in other.states
    }


def _share(counts: Mapping[str, int], name: str, common: int) -> float:
    return (sum(counts.values()) if name == ALL else counts[name]) / common if common else nan

"""Where carried tickets come from: run folders, and files that ``lth ticket pack`` wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from lth_scale import data, models, settings, tickets
from lth_scale.config import Config, Transfer, labelled
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.models import Prunable
from lth_scale.paths import RunPaths
from lth_scale.tickets import Ticket
from lth_scale.transfer.fetching import fetched


@dataclass(frozen=True)
class Origin:
    """A source of tickets.

    Args:
        place: as the user named it.
        config: what the tickets were made with.
        packed: (seed, round) -> ticket file; empty for a run folder.
    """

    place: str
    config: Config
    packed: Mapping[tuple[int, int], Path]

    @property
    def label(self) -> str:
        """What arms call it: the data set, and the hash of all that its results depend on."""
        return f"{self.config.data.name}.{settings.digest(self.config)}"

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape, told by the config alone."""
        seen = data.describe(self.config.data)
        network = models.skeleton(self.config.model, seen.shape, seen.classes)
        return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}

    def check_shapes(self, shapes: Mapping[str, tuple[int, ...]], fresh: Iterable[str]) -> None:
        """Raises UserError unless all tensors of the target but the fresh ones have the shapes that they have here."""
        for name in shapes.keys() - set(fresh):
            if self.shapes.get(name) != shapes[name]:
                there = "x".join(map(str, self.shapes.get(name, ()))) or "missing"
                seen = list(data.describe(self.config.data).shape)
                raise UserError(
                    f"transfer.sources: {name} is {there} in {self.place} and {'x'.join(map(str, shapes[name]))} here; "
                    f"the model must be the same, and so must the images: --data.shape={seen}, or with "
                    "--transfer.layers=hidden the input layer stays behind"
                )

    def find(self, seed: int, number: int) -> Path:
        """The file of a ticket, or of its mask. Raises UserError when it is not here."""
        if self.packed:
            if (seed, number) not in self.packed:
                held = ", ".join(f"seed {s} round {r}" for s, r in sorted(self.packed) if r)
                raise UserError(
                    f"transfer.sources: {self.place} holds no ticket of seed {seed} round {number}; only {held}; "
                    "choose by --run.seeds and --transfer.rounds"
                )
            return self.packed[seed, number]
        mask = RunPaths(Path(self.place)).round(seed, "ticket", number).mask
        if not mask.exists():
            raise UserError(
                f"transfer.sources: {self.place} has no ticket of seed {seed} round {number} ({mask} is missing); "
                "finish that run, or choose other --run.seeds or --transfer.rounds"
            )
        return mask

    def ticket(self, seed: int, number: int, prunable: Sequence[Prunable]) -> Ticket:
        """Mask of these tensors, and theta_k. Raises UserError when something is missing, damaged or does not fit."""
        path = self.find(seed, number)
        found = self._packed(path, seed) if self.packed else tickets.of_run(Path(self.place), seed, number)
        if "theta_k" not in found.states:
            raise UserError(f"transfer.sources: {path} holds no theta_k, from which its ticket would start")
        absent = [tensor.name for tensor in prunable if tensor.name not in found.mask]
        if absent:
            raise UserError(f"transfer.sources: the mask of {path} lacks {', '.join(absent)}")
        mask = Mask.of(
            {tensor.name: tensor.shape for tensor in prunable},
            {tensor.name: found.mask.range(tensor.name, 0, tensor.numel) for tensor in prunable},
        )
        return Ticket(mask, found.states, found.config, found.provenance)

    def _packed(self, path: Path, seed: int) -> Ticket:
        """A ticket file; where it lacks theta_k, with that of its replicate's round 0, if that is the one it names."""
        found, dense = tickets.load(path), self.packed.get((seed, 0))
        if "theta_k" in found.states or dense is None:
            return found
        start = tickets.load(dense)
        if found.provenance["theta_k_of_run"] != start.provenance["theta_k_of_run"]:
            raise UserError(f"transfer.sources: {path} starts from another theta_k than {dense} holds; get them anew")
        return Ticket(found.mask, start.states, found.config, found.provenance)


def with_labels(transfer: Transfer, beside: Path) -> Transfer:
    """The section with every source as LABEL=PLACE, the place absolute; what has a label is not opened.

    Args:
        transfer: the section.
        beside: the folder that holds the run, and what has to be brought for it.

    Raises UserError naming a source that is none, or two that hold tickets of one config.
    """
    named: dict[str, str] = {}
    for source in transfer.sources:
        label, place = labelled(source)
        place = place if label else fetched(place, beside)
        label, place = label or opened(place).label, str(Path(place).expanduser().absolute())
        if named.setdefault(label, place) != place:
            raise UserError(f"transfer.sources: {named[label]} and {place} hold tickets of one config; name one")
    return replace(transfer, sources=tuple(f"{label}={place}" for label, place in named.items()))


def origin(transfer: Transfer, label: str) -> Origin:
    """The source of a label. Raises UserError when its place holds tickets of another config by now."""
    found = opened(transfer.places[label])
    if found.label != label:
        raise UserError(f"transfer.sources: {found.place} holds tickets of {found.label} now, no longer of {label}")
    return found


def check(transfer: Transfer, wanted: Iterable[tuple[str, int, int]], model: nn.Module, fresh: Iterable[str]) -> None:
    """Raises UserError unless the sources fit the model, and hold these tickets of (label, seed, round)."""
    tickets_of: dict[str, list[tuple[int, int]]] = {}
    for label, seed, number in wanted:
        tickets_of.setdefault(label, []).append((seed, number))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for label, places in tickets_of.items():
        source = origin(transfer, label)
        source.check_shapes(shapes, fresh)
        for seed, number in places:
            source.find(seed, number)


def opened(place: str) -> Origin:
    """A source, its config read. Raises UserError when it is none."""
    path = Path(place).expanduser()
    if RunPaths(path).config.is_file():
        return Origin(str(path), settings.load(RunPaths(path).config), {})
    packed = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not packed or not path.exists():
        raise UserError(
            f"transfer.sources: {place} is neither a run folder, nor a ticket that lth ticket pack wrote, nor a folder "
            "of such tickets"
        )
    found = {file: tickets.load(file) for file in packed}
    configs = {settings.digest(made := settings.read_text(t.config, f)): made for f, t in found.items()}
    if len(configs) > 1:
        raise UserError(
            f"transfer.sources: {place} holds tickets of several configs; a source is the tickets of one run"
        )
    named = {(_number(t, "seed", f), _number(t, "round", f)): f for f, t in found.items()}
    return Origin(place, next(iter(configs.values())), named)


def _number(ticket: Ticket, key: str, path: Path) -> int:
    value = ticket.provenance.get(key)
    if not isinstance(value, int):
        raise UserError(f"transfer.sources: {path} does not say its {key}")
    return value

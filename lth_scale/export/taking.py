"""Masks of other programs, made into tickets of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from lth_scale import data, files, models, settings, tickets
from lth_scale.checkpoint import State
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.tickets import Foreign, Ticket


def take(path: Path, kind: str, model: Sequence[str]) -> Ticket:
    """The ticket in another program's file.

    Args:
        kind: one of :data:`lth_scale.tickets.READERS`.
        model: words of a config, to whose model the names are mapped; without any they stay.

    Raises:
        UserError: a file that is damaged or of another kind, or tensors that do not fit the model.
    """
    found = tickets.READERS[kind](path)
    about = {"from": kind, "file": path.name, "file_sha256": files.sha256_file(path)}
    if not model:
        return Ticket(Mask(found.mask), _weights(found.weights), "", about)
    config = settings.parse(model)
    seen = data.describe(config.data)
    network = models.skeleton(config.model, seen.shape, seen.classes)
    names = _names(found, network)
    mask = {names[name]: kept for name, kept in found.mask.items()}
    weights = {names[name]: tensor for name, tensor in found.weights.items()}
    return Ticket(_whole(mask, network), _weights(weights, network), settings.dump(config), about | {"names": names})


def _names(found: Foreign, network: nn.Module) -> dict[str, str]:
    """Their name -> ours: of all parameters and buffers where the file has them, else of what is pruned."""
    theirs = {name: tuple(tensor.shape) for name, tensor in (found.weights or found.mask).items()}
    if found.weights:
        return tickets.paired(theirs, {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    return tickets.paired(theirs, {p.name: p.shape for p in models.prunable(network)})


def _whole(mask: Mapping[str, torch.Tensor], network: nn.Module) -> Mask:
    """The mask of all that is prunable: a layer that was left out there is kept whole."""
    prunable = {p.name: p.shape for p in models.prunable(network)}
    if strange := [name for name in mask if name not in prunable]:
        raise UserError(f"{', '.join(strange)} is masked in the file, but this model prunes only {', '.join(prunable)}")
    return Mask({name: mask.get(name, torch.ones(shape, dtype=torch.bool)) for name, shape in prunable.items()})


def _weights(tensors: Mapping[str, torch.Tensor], network: nn.Module | None = None) -> dict[str, State]:
    """theta_T, the only weights that such a file has. Without a network nobody knows which of them are buffers."""
    if not tensors:
        return {}
    buffers = dict(network.named_buffers()) if network else {}
    held = {name: tensor for name, tensor in tensors.items() if name not in buffers}
    return {"theta_T": State(held, {name: tensors[name] for name in buffers if name in tensors})}

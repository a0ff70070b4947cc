"""A smaller network that computes the same: units that a ticket has made dead are removed, their constants folded.

A unit is dead when nothing reads it, or when all weights into it are pruned: then its value is the same for every
image, and moves into the biases of what reads it. Units are the channels of :mod:`lth_scale.models.coupling`, so
residual branches are removed together or not at all. Removing some may make others dead; this is done until none is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lth_scale.models.channels import groups, narrowed
from lth_scale.models.coupling import Axis, Group
from lth_scale.models.parameters import CONVOLUTIONS

PROBES = 2  # images, unlike one another, on which a constant must be one


@dataclass(frozen=True)
class Compacted:
    """Args: model: smaller, in eval mode; before: units of each group; after: those that are left."""

    model: nn.Module
    before: tuple[int, ...]
    after: tuple[int, ...]


@torch.no_grad()
def compacted(model: nn.Module, shape: tuple[int, ...]) -> Compacted:
    """A copy of a network without its dead units; in eval mode its outputs are equal to rounding.

    A constant is folded where that is exact: into a linear layer, and into a convolution where it is 0 or nothing is
    padded, since padding is 0 at the border whatever the constant. Other units stay, as does one of each group. A layer
    that takes up constants gets a bias if it had none.

    Args:
        model: with its mask applied, pruned weights being 0; left as it is.
        shape: of one image: (channels, height, width).

    Units that meet what :func:`lth_scale.models.channels.groups` cannot follow stay.
    """
    network = copy.deepcopy(model).eval()
    before = tuple(group.size for group in groups(network, shape, strict=False))
    while True:
        found = groups(network, shape, strict=False)
        _fold(network, found, shape)
        kept = [_read(network, group) for group in found]
        if all(bool(alive.all()) for alive in kept):
            return Compacted(network, before, tuple(group.size for group in found))
        network = narrowed(network, found, kept)


def _read(network: nn.Module, group: Group) -> torch.Tensor:
    """bool [size]: the units that something reads; the first where nothing reads any."""
    parameters = dict(network.named_parameters())
    read = torch.stack([_any(parameters[axis.name], axis, group.size) for axis in group.consumers]).any(0)
    read[0] |= not read.any()
    return read


def _any(weight: torch.Tensor, axis: Axis, size: int) -> torch.Tensor:
    """bool [size]: whether some weight of a unit is not 0."""
    return (weight.movedim(axis.dim, 0).reshape(size, -1) != 0).any(1).cpu()


def _fold(network: nn.Module, found: Sequence[Group], shape: tuple[int, ...]) -> None:
    """Move the constants of units without inputs into what reads them, where that is exact; nothing reads them then."""
    parameters = dict(network.named_parameters())
    seen = _inputs(network, {axis.name for group in found for axis in group.consumers}, shape)
    for group in found:
        made = torch.stack([_any(parameters[a.name], a, group.size) for a in group.producers]).any(0)
        units = (~made & _read(network, group)).nonzero().flatten().tolist()
        for unit in units:
            if all(_foldable(network, axis, seen[axis.name], unit) for axis in group.consumers):
                for axis in group.consumers:
                    _take_up(network, axis, seen[axis.name], unit)


def _inputs(network: nn.Module, names: set[str], shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Name of a weight -> what its layer reads for PROBES images of noise: [PROBES, inputs, ...]."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        _layer(network, name).register_forward_pre_hook(lambda _, given, name=name: seen.__setitem__(name, given[0]))
        for name in names
    ]
    like = next(network.parameters())
    noise = torch.randn(PROBES, *shape, generator=torch.Generator().manual_seed(0))
    network(noise.to(like))
    for hook in hooks:
        hook.remove()
    return seen


def _layer(network: nn.Module, name: str) -> nn.Module:
    return network.get_submodule(name.rpartition(".")[0])


def _places(axis: Axis, unit: int) -> slice:
    return slice(unit * axis.width, (unit + 1) * axis.width)


def _values(layer: nn.Module, axis: Axis, inputs: torch.Tensor, unit: int) -> torch.Tensor:
    """[everywhere that the layer reads a unit, width]: its entries there."""
    last = inputs if isinstance(layer, nn.Linear) else inputs.movedim(1, -1)
    return last[..., _places(axis, unit)].reshape(-1, axis.width)


def _foldable(network: nn.Module, axis: Axis, inputs: torch.Tensor, unit: int) -> bool:
    layer = _layer(network, axis.name)
    values = _values(layer, axis, inputs, unit)
    if isinstance(layer, CONVOLUTIONS):
        padded = layer.padding != "valid" and (isinstance(layer.padding, str) or any(layer.padding))
        if layer.groups > 1 or (padded and bool(values.any())):
            return False
    return bool((values == values[0]).all())


def _take_up(network: nn.Module, axis: Axis, inputs: torch.Tensor, unit: int) -> None:
    """Add what a unit's constant gives to a layer's bias, and stop reading it."""
    layer, place = _layer(network, axis.name), _places(axis, unit)
    assert isinstance(layer, (nn.Linear, *CONVOLUTIONS))
    weights = layer.weight[:, place]
    given = weights.reshape(*weights.shape[:2], -1).sum(2) @ _values(layer, axis, inputs, unit)[0]
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(given))
    layer.bias += given
    layer.weight[:, place] = 0

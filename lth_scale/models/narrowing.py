"""Networks from which channels are physically gone, and the way of their weights back to the original coordinates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod

import torch
from torch import nn

from lth_scale.models.coupling import Group, Kept
from lth_scale.models.parameters import CONVOLUTIONS


def narrowed(model: nn.Module, groups: Sequence[Group], kept: Kept) -> nn.Module:
    """A copy without the dead channels, which computes what the model computes under their mask.

    Weights, biases and BatchNorm's parameters and statistics shrink, and their layers' attributes with them; modes,
    names and their order stay. Gradients are not copied.

    Args:
        model: in its original size; left as it is.
        groups: of this model.
        kept: for each group, bool [size], True = stays.
    """
    network = copy.deepcopy(model)
    network.zero_grad()
    stored = dict(chain(network.named_parameters(), network.named_buffers()))
    for name, cut in cuts(groups, kept, {name: tuple(tensor.shape) for name, tensor in stored.items()}).items():
        stored[name].data = cut.of(stored[name].data)
    for module in network.modules():
        _resize(module)
    return network


def widened(
    state: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor], groups: Sequence[Group], kept: Kept
) -> dict[str, torch.Tensor]:
    """A narrowed network's state in the original coordinates.

    Args:
        state: name -> parameter, buffer, gradient or moment of the narrowed network; tied ones under their first name.
        like: name -> tensor of the original shape, whose values dead channels keep; left as it is.
        groups: of the original model.
        kept: for each group, bool [size], as the network was narrowed.
    """
    found, wide = cuts(groups, kept, {name: tuple(tensor.shape) for name, tensor in like.items()}), {}
    for name, values in state.items():
        wide[name] = like[name].to(values, copy=True)
        if name in found:
            places = found[name].flat(0, values.numel()).to(values.device)
            wide[name] = wide[name].flatten().index_copy(0, places, values.flatten()).view(like[name].shape)
        else:
            wide[name].copy_(values)
    return wide


@dataclass(frozen=True, eq=False)
class Cut:
    """Which entries of a tensor stay: those at places that stay in each of its dimensions.

    Args:
        whole: its original shape.
        places: for each dimension, int64 [entries that stay], ascending; at least one.
    """

    whole: tuple[int, ...]
    places: tuple[torch.Tensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """What is left of the original one."""
        return tuple(map(len, self.places))

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The entries that stay, of a tensor of the original shape; itself where all do."""
        for dim, places in enumerate(self.places):
            if len(places) < self.whole[dim]:
                tensor = tensor.index_select(dim, places.to(tensor.device))
        return tensor

    def flat(self, start: int, stop: int) -> torch.Tensor:
        """int64 [stop - start], ascending: where a flat range of what stays lies in the flattened original."""
        rest, stride = torch.arange(start, stop), 1
        found = torch.zeros_like(rest)
        for size, places in zip(reversed(self.whole), reversed(self.places), strict=True):
            found += places[rest % len(places)] * stride
            rest, stride = rest // len(places), stride * size
        return found

    def around(self, start: int, stop: int) -> tuple[int, int]:
        """The flat range of the original that goes with one of what stays: ranges that tile one tile the other."""
        edges = {0: 0, prod(self.shape): prod(self.whole)}
        first, last = (edges[at] if at in edges else int(self.flat(at, at + 1)) for at in (start, stop))
        return first, last


def cuts(groups: Sequence[Group], kept: Kept, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Cut]:
    """Name -> what stays of it, of the tensors that lose something.

    Args:
        groups: of the original model.
        kept: for each group, bool [size], True = stays.
        shapes: name -> original shape of every parameter and buffer of interest.
    """
    found: dict[str, dict[int, torch.Tensor]] = {}
    for group, alive in zip(groups, kept, strict=True):
        for axis in group.axes:
            if axis.name in shapes and not alive.all():
                found.setdefault(axis.name, {})[axis.dim] = axis.spread(alive).nonzero().flatten()
    return {
        name: Cut(shapes[name], tuple(lost.get(dim, torch.arange(size)) for dim, size in enumerate(shapes[name])))
        for name, lost in found.items()
    }


def _resize(module: nn.Module) -> None:
    """Make a layer's attributes say what its tensors' shapes say."""
    weight = module._parameters.get("weight")
    if isinstance(module, CONVOLUTIONS) and weight is not None:
        if module.groups > 1:  # whole groups are gone
            module.groups = weight.shape[0] * module.groups // module.out_channels
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        sized = weight if weight is not None else module.running_mean
        module.num_features = module.num_features if sized is None else sized.shape[0]

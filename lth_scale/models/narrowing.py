"""Networks from which channels are physically gone, and the way of their weights back to the original coordinates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import nn

from lth_scale.models.coupling import Axis, Group, Kept
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
    cuts = _cuts(groups, kept)
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        tensor.data = _cut(tensor.data, cuts.get(name, []))
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
    cuts, wide = _cuts(groups, kept), {}
    for name, values in state.items():
        places = _cut(torch.arange(like[name].numel(), device=values.device).view(like[name].shape), cuts.get(name, []))
        flat = like[name].to(values, copy=True).flatten()
        flat[places.flatten()] = values.flatten()
        wide[name] = flat.view(like[name].shape)
    return wide


def _cuts(groups: Sequence[Group], kept: Kept) -> dict[str, list[tuple[Axis, torch.Tensor]]]:
    """Name -> (axis, bool [size]) of each dimension that loses channels."""
    cuts: dict[str, list[tuple[Axis, torch.Tensor]]] = {}
    for group, alive in zip(groups, kept, strict=True):
        for axis in group.axes:
            cuts.setdefault(axis.name, []).append((axis, alive))
    return cuts


def _cut(tensor: torch.Tensor, cuts: Sequence[tuple[Axis, torch.Tensor]]) -> torch.Tensor:
    """The entries of a tensor that belong to channels that stay."""
    for axis, alive in cuts:
        places = axis.spread(alive).nonzero().flatten()
        tensor = tensor.index_select(axis.dim, places.to(tensor.device))
    return tensor


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

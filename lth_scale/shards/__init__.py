"""The one room that knows where a parameter's fp32 master weights and optimizer state are on this rank.

Selection, masking, rewinding and the zero proof use only this. One device and DDP: every rank holds everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lth_scale.checkpoint import State
from lth_scale.errors import UserError


@dataclass(frozen=True)
class LocalShard:
    """This rank's part of one parameter.

    Args:
        name: the parameter's plain name.
        weights: fp32 master weights, a view that may be written to, of the parameter's shape here.
        offset: where the part starts in the flattened parameter.
        numel: weights of the whole parameter.
        parameter: the model's own tensor, which carries the gradient.
    """

    name: str
    weights: torch.Tensor
    offset: int
    numel: int
    parameter: nn.Parameter


def local_shards(module: nn.Module) -> list[LocalShard]:
    """The parts of every parameter on this rank, tied ones once. Raises UserError naming one that cannot be handled."""
    return [_shard(name, parameter) for name, parameter in module.named_parameters()]


def _shard(name: str, parameter: nn.Parameter) -> LocalShard:
    plain = type(parameter.data) is torch.Tensor and not isinstance(parameter, nn.UninitializedParameter)
    if not plain or parameter.is_sparse or parameter.is_complex():
        raise UserError(
            f"parameter {name} ({type(parameter).__name__}, {parameter.dtype}) cannot be handled: not a dense tensor"
        )
    return LocalShard(name, parameter.data, 0, parameter.numel(), parameter)


def optimizer_state(shard: LocalShard, optimizers: Sequence[Optimizer]) -> dict[str, torch.Tensor]:
    """This rank's optimizer state of a parameter, by key; tensors only, not copies."""
    entries = [optimizer.state[shard.parameter] for optimizer in optimizers if shard.parameter in optimizer.state]
    return {key: value for entry in entries for key, value in entry.items() if isinstance(value, torch.Tensor)}


def capture(module: nn.Module, optimizers: Sequence[Optimizer], step: int) -> State:
    """A copy of the state on the CPU; later training does not reach it."""
    shards = local_shards(module)
    return State(
        {s.name: _copy(s.weights) for s in shards},
        {name: _copy(buffer) for name, buffer in module.named_buffers()},
        {s.name: {k: _copy(v) for k, v in held.items()} for s in shards if (held := optimizer_state(s, optimizers))},
        step,
    )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


@torch.no_grad()
def restore(module: nn.Module, optimizers: Sequence[Optimizer], state: State) -> None:
    """Copy a state into a module and its optimizers; an empty optimizer state makes theirs fresh."""
    shards = {shard.name: shard for shard in local_shards(module)}
    buffers = dict(module.named_buffers())
    _require_same_names("parameters", shards, state.weights)
    _require_same_names("buffers", buffers, state.buffers)
    for name, shard in shards.items():
        shard.weights.copy_(state.weights[name])
    for name, buffer in buffers.items():
        buffer.copy_(state.buffers[name])
    names = {id(shard.parameter): name for name, shard in shards.items()}
    for optimizer in optimizers:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            counts_on_device = bool(group.get("fused") or group.get("capturable"))  # where torch keeps the step counter
            for parameter in group["params"]:
                entry = state.optimizer.get(names[id(parameter)], {})
                if entry:
                    optimizer.state[parameter] = {
                        key: tensor.clone() if key == "step" and not counts_on_device else _placed(tensor, parameter)
                        for key, tensor in entry.items()
                    }


def _placed(tensor: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    if tensor.shape != parameter.shape:  # a step counter, or a factored moment
        return tensor.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _require_same_names(what: str, here: Mapping[str, object], there: Mapping[str, object]) -> None:
    if here.keys() != there.keys():
        odd = ", ".join(sorted(here.keys() ^ there.keys())[:5])
        raise UserError(f"the stored state and the model have different {what}: {odd}")

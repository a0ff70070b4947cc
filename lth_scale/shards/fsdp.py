"""FSDP2: each rank owns whole rows of every parameter, as the local part of a DTensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lth_scale.errors import UserError
from lth_scale.shards.base import LocalShard, Shards, allocate_beside, plain


class FsdpShards(Shards):
    """The local parts of DTensors, flat.

    Args:
        module: the model, sharded already.
        optimizers: of its parameters.

    Raises UserError naming a parameter that is not sharded.
    """

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        super().__init__(module, optimizers)
        self.group = dist.group.WORLD
        self._parameters = {plain(name): _sharded(name, parameter) for name, parameter in module.named_parameters()}
        self._local = [_shard(name, parameter) for name, parameter in self._parameters.items()]

    def local(self) -> Sequence[LocalShard]:
        """Rows, flattened."""
        return self._local

    def gradients(self) -> dict[str, torch.Tensor]:
        """Those of the last backward pass, which FSDP2 has reduced and scattered."""
        grads = ((name, parameter.grad) for name, parameter in self._parameters.items())
        return {name: _flat(grad) for name, grad in grads if grad is not None and len(_flat(grad))}

    def state(self, shard: LocalShard) -> dict[str, torch.Tensor]:
        """The local parts of the state."""
        parameter = self._parameters[shard.name]
        entries = [o.state[parameter] for o in self.optimizers if parameter in o.state and len(shard)]
        return {
            key: _flat(value) if isinstance(value, DTensor) else value
            for entry in entries
            for key, value in entry.items()
            if isinstance(value, torch.Tensor)
        }

    def allocate(self, entries: Mapping[str, Mapping[str, torch.Tensor | torch.dtype]]) -> None:
        """DTensors beside the parameters, sharded like them."""
        allocate_beside(self.optimizers, self._parameters, entries)

    def refresh(self) -> None:
        """Drop gathered weights, so that the next forward pass gathers them anew."""
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def _sharded(name: str, parameter: nn.Parameter) -> DTensor:
    if not isinstance(parameter, DTensor):
        raise UserError(f"parameter {plain(name)} is not sharded, which hardware.strategy=fsdp2 needs")
    return parameter


def _shard(name: str, parameter: DTensor) -> LocalShard:
    """Rank r has the r-th of the chunks that torch.chunk makes of the rows."""
    rows, ranks, shape = parameter.shape[0], parameter.device_mesh.size(), parameter.shape
    row = parameter.device_mesh.get_local_rank() * -(-rows // ranks)
    weights = _flat(parameter)
    return LocalShard(name, weights, row * shape[1:].numel() if len(weights) else 0, tuple(shape))


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    with torch.no_grad():
        return tensor.to_local().view(-1)

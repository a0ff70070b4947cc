"""One device, and DDP: every rank holds everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from lth_scale.errors import UserError
from lth_scale.shards.base import LocalShard, Shards, allocate_beside, plain


class ReplicatedShards(Shards):
    """The module's own tensors, each in its own shape.

    Raises UserError naming a parameter that cannot be handled.
    """

    replicated = True

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        super().__init__(module, optimizers)
        self._parameters = {plain(name): parameter for name, parameter in module.named_parameters()}
        self.local()

    def local(self) -> Sequence[LocalShard]:
        """Whole parameters, as the module has them now."""
        return [_shard(name, parameter) for name, parameter in self._parameters.items()]

    def gradients(self) -> dict[str, torch.Tensor]:
        """Those of the last backward pass, which DDP has averaged."""
        return {name: p.grad for name, p in self._parameters.items() if p.grad is not None}

    def state(self, shard: LocalShard) -> dict[str, torch.Tensor]:
        """Tensors only; not copies."""
        parameter = self._parameters[shard.name]
        entries = [optimizer.state[parameter] for optimizer in self.optimizers if parameter in optimizer.state]
        return {key: value for entry in entries for key, value in entry.items() if isinstance(value, torch.Tensor)}

    def allocate(self, entries: Mapping[str, Mapping[str, torch.Tensor | torch.dtype]]) -> None:
        """Tensors beside the parameters, laid out like them."""
        allocate_beside(self.optimizers, self._parameters, entries)


def _shard(name: str, parameter: nn.Parameter) -> LocalShard:
    dense = type(parameter.data) is torch.Tensor and not isinstance(parameter, nn.UninitializedParameter)
    if not dense or parameter.is_sparse or parameter.is_complex():
        raise UserError(
            f"parameter {name} ({type(parameter).__name__}, {parameter.dtype}) cannot be handled: not a dense tensor"
        )
    return LocalShard(name, parameter.data, 0, tuple(parameter.shape))

"""What training holds on this rank, whatever the strategy: flat ranges of fp32 master weights, and what goes with them.

Selection, masking, rewinding, checkpoints and the zero proof use only this. A strategy is one subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True, eq=False)
class LocalShard:
    """This rank's part of one parameter.

    Args:
        name: the parameter's plain name.
        weights: fp32 master weights, a view that may be written to: of the parameter's shape where it is whole here and
            replicated, flat [n] where it is sharded; n is 0 where nothing is here.
        offset: where the part starts in the flattened parameter.
        shape: the whole parameter's.
    """

    name: str
    weights: torch.Tensor
    offset: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.weights.numel()

    @property
    def numel(self) -> int:
        """Weights of the whole parameter."""
        return torch.Size(self.shape).numel()


class Shards(ABC):
    """All that training holds on this rank.

    Args:
        module: the model, wrapped by its strategy already.
        optimizers: torch's, that step on the masters.
    """

    replicated = False
    """Whether every rank holds everything, so that ranks share the writing of one copy."""

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self.module, self.optimizers = module, list(optimizers)
        self.averages: dict[str, torch.Tensor] = {}  # name -> averaged weights, shaped like the part's
        self.group: dist.ProcessGroup | None = None  # the ranks that share one copy; None: this one alone

    @abstractmethod
    def local(self) -> Sequence[LocalShard]:
        """One part per parameter, in the model's order, tied ones once."""

    @abstractmethod
    def gradients(self) -> dict[str, torch.Tensor]:
        """Name -> this rank's reduced gradient, shaped like ``weights`` and writable, of the parameters that have one.

        Valid between the backward pass of a global batch and the clipping before the optimizer's step.
        """

    @abstractmethod
    def state(self, shard: LocalShard) -> dict[str, torch.Tensor]:
        """Key -> optimizer state of a part: writable views shaped like ``weights``, and other tensors (``step``)."""

    @abstractmethod
    def allocate(self, entries: Mapping[str, Mapping[str, torch.Tensor | torch.dtype]]) -> None:
        """Make the optimizers' state anew: name -> key -> a tensor to copy, or the dtype of zeros like the weights.

        Names without entries, and an empty mapping, give an optimizer as before its first step.
        """

    def refresh(self) -> None:  # noqa: B027  # most have no second copy
        """Bring the copy that the model computes with up to date after the masters were written."""

    def buffers(self) -> dict[str, torch.Tensor]:
        """Name -> buffer; every rank holds them whole."""
        return {plain(name): buffer for name, buffer in self.module.named_buffers()}


def counts_on_device(options: Mapping[str, Any]) -> bool:
    """Whether torch's optimizer, of these options, keeps its ``step`` beside the weights and not on the CPU."""
    return bool(options.get("fused") or options.get("capturable"))


def allocate_beside(
    optimizers: Sequence[Optimizer],
    parameters: Mapping[str, torch.Tensor],
    entries: Mapping[str, Mapping[str, torch.Tensor | torch.dtype]],
) -> None:
    """:meth:`Shards.allocate` where optimizers step on the model's own parameters: zeros are laid out like these."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    for optimizer in optimizers:
        optimizer.state.clear()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if entry := entries.get(names[id(parameter)], {}):
                    optimizer.state[parameter] = {
                        key: _beside(value, parameter, key != "step" or counts_on_device(group))
                        for key, value in entry.items()
                    }


def _beside(value: torch.Tensor | torch.dtype, parameter: torch.Tensor, on_device: bool) -> torch.Tensor:
    if isinstance(value, torch.dtype):
        return torch.zeros_like(parameter.detach(), dtype=value)
    return value.to(parameter.device, copy=True) if on_device else value.clone()


def plain(name: str) -> str:
    """A parameter's or buffer's name as it was before torch.compile wrapped its module."""
    return name.replace("_orig_mod.", "")

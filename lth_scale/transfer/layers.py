"""Which tensors a ticket carries from one data set to another, and which start anew there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from lth_scale.config import Transfer
from lth_scale.errors import UserError
from lth_scale.models import Prunable


def carried_over(prunable: Sequence[Prunable], transfer: Transfer) -> list[Prunable]:
    """What is pruned, and counted in the density: of the layers named by ``transfer.layers``."""
    left = {tensor.name for tensor in _left_behind(prunable, transfer)}
    kept = [tensor for tensor in prunable if tensor.name not in left]
    if not kept:
        raise UserError(f"transfer.layers={transfer.layers!r} leaves nothing of this model to carry over; choose body")
    return kept


def fresh(model: nn.Module, prunable: Sequence[Prunable], transfer: Transfer) -> frozenset[str]:
    """Names of the parameters and buffers of the layers that are left behind, biases included."""
    layers = {tensor.name.rpartition(".")[0] for tensor in _left_behind(prunable, transfer)}
    names: Iterable[str] = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    return frozenset(name for name in names if name.rpartition(".")[0] in layers)


def _left_behind(prunable: Sequence[Prunable], transfer: Transfer) -> list[Prunable]:
    outputs = [tensor for tensor in prunable if tensor.kind == "output"] if transfer.layers != "all" else []
    return [*prunable[:1], *outputs] if transfer.layers == "hidden" else outputs

"""The network that a state belongs to, for formats that hold a program and not only weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lth_scale import data, models, settings
from lth_scale.errors import UserError
from lth_scale.export.sources import Chosen
from lth_scale.models.compacting import compacted


@dataclass(frozen=True)
class Network:
    """A network, and what is exported of it.

    Args:
        model: in eval mode, pruned weights 0.
        shape: of one image.
        small: the same without dead units.
        told: how many are left; empty where nobody asked.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    small: nn.Module
    told: str


def network(chosen: Chosen, whole: bool = False) -> Network:
    """Build it.

    Args:
        chosen: a state with its config.
        whole: dead units stay.

    Raises:
        UserError: no config comes with the state, or the state is another model's.
    """
    if not chosen.config:
        raise UserError(
            "this format holds a program: it needs a run folder, or a ticket of one, whose config tells which"
        )
    config = settings.read_text(chosen.config, Path("the config"))
    seen = data.describe(config.data)
    model = models.build(config.model, seen.shape, seen.classes, 0).eval()
    fill(model, chosen.tensors())
    if whole:
        return Network(model, seen.shape, model, "")
    found = compacted(model, seen.shape)
    return Network(model, seen.shape, found.model, f"{sum(found.after)} of {sum(found.before)} hidden units are left")


@torch.no_grad()
def fill(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy a state into a model. Raises UserError where it has not every parameter and buffer in its shape."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name not in state or state[name].shape != tensor.shape:
            raise UserError(f"{name} of the model is not in the state, or of another shape there")
        tensor.copy_(state[name])

"""Masks that other programs have saved with ``torch.save``, read without unpickling anything but tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lth_scale.checkpoint.layout import DTYPES
from lth_scale.errors import UserError


@dataclass(frozen=True)
class Foreign:
    """What such a file holds, under the names it has there, in its order.

    Args:
        mask: bool tensors.
        weights: all weights and buffers, not masked; none where the file is a mask alone.
    """

    mask: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def openlth(path: Path) -> Foreign:
    """OpenLTH's ``mask.pth``: name -> tensor of 0 and 1. Raises UserError naming what is not so."""
    tensors = _tensors(path)
    return Foreign({name: _kept(path, name, tensor) for name, tensor in tensors.items()})


def torch_prune(path: Path) -> Foreign:
    """The state dict of a model pruned by torch.nn.utils.prune: NAME_orig beside NAME_mask makes NAME.

    Raises UserError naming what is not so.
    """
    tensors = _tensors(path)
    masked = [name.removesuffix("_orig") for name in tensors if name.endswith("_orig")]
    if not masked:
        raise UserError(
            f"{path} holds no NAME_orig beside NAME_mask: not the state dict of a model under torch.nn.utils.prune "
            "(after prune.remove the masks are gone)"
        )
    mask, weights = {}, {}
    for name in masked:
        if (found := tensors.pop(f"{name}_mask", None)) is None:
            raise UserError(f"{path} holds {name}_orig, but no {name}_mask")
        mask[name] = _kept(path, f"{name}_mask", found)
        if found.shape != tensors[f"{name}_orig"].shape:
            shapes = f"{tuple(found.shape)}, and {name}_orig {tuple(tensors[f'{name}_orig'].shape)}"
            raise UserError(f"{path}: {name}_mask has shape {shapes}")
    for name, tensor in tensors.items():
        plain = name.removesuffix("_orig")
        if plain in weights:
            raise UserError(f"{path} holds {plain} twice, as such and as {plain}_orig")
        weights[plain] = tensor
    return Foreign(mask, weights)


READERS: dict[str, Callable[[Path], Foreign]] = {"openlth": openlth, "torch": torch_prune}
"""``--format`` -> its reader."""


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    held = _read(path)
    if not isinstance(held, Mapping) or not held:
        raise UserError(f"{path} holds a {type(held).__name__}, not a table of names and tensors")
    for name, tensor in held.items():
        usable = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not isinstance(name, str) or not name or not usable or tensor.dtype not in DTYPES.values():
            raise UserError(f"{path}: {name!r} is {_described(tensor)}, not a named tensor of numbers")
    return {name: tensor.detach() for name, tensor in held.items()}


def _described(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is no file")
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of its own readers
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file of any content makes torch's reader raise
        why = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"{path} is not read: it is damaged, or holds more than tensors, which might be a program ({why[0]})"
        ) from None


def _kept(path: Path, name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not bool(((tensor == 0) | (tensor == 1)).all()):
        raise UserError(f"{path}: {name} is not a mask: it holds numbers other than 0 and 1")
    return tensor == 1

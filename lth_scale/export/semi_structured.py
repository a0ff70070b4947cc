"""The 2:4 file: weights of linear layers as NVIDIA's sparse tensor cores take them, at 9/16 of their bytes.

Of every four consecutive inputs two values are stored, with two bits for the place of each, in the layout of torch's
CUTLASS backend: ``torch.sparse.SparseSemiStructuredTensorCUTLASS(shape, packed, meta, None, None, None)``. The pattern
is of Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, section 3. docs/export.md has the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from lth_scale.errors import UserError, unknown
from lth_scale.export import sealed
from lth_scale.export.network import fill
from lth_scale.export.sealed import Tensors
from lth_scale.export.sparse import VALUES as FLOATS
from lth_scale.export.sparse import rounded
from lth_scale.masks import Mask

KIND = sealed.Kind("semi_structured")
VALUES = {name: FLOATS[name] for name in ("fp16", "bf16")}
ROWS, COLUMNS = 32, 64  # that outputs and inputs are multiples of; torch's limits for its CUTLASS layout


def write_semi_structured(
    state: Mapping[str, torch.Tensor], mask: Mask, path: Path, about: Mapping[str, str], values: str
) -> tuple[int, dict[str, str]]:
    """Write a state's weights and buffers, whole or not at all; (the file's bytes, why which masked tensor is dense).

    Args:
        state: name -> tensor; what is not packed is stored as it is.
        mask: of some of them; [out, in] weights of which at most 2 of 4 consecutive inputs survive are packed.
        path: of the file.
        about: further metadata, as texts.
        values: of the packed weights, fp16 or bf16.

    Raises:
        UserError: another word for values, nothing to pack, a weight that fp16 cannot hold, a torch without the
            conversion, or the system refuses the write.
    """
    if values not in VALUES:
        raise unknown("--values", values, VALUES)
    dense = {name: why for name in mask if (why := _why_dense(mask[name]))}
    packed = [name for name in mask if name not in dense]
    if not packed:
        told = "; ".join(f"{why}: {', '.join(names)}" for why, names in by_reason(dense).items())
        raise UserError(
            f"no weight can be packed ({told}); what can is a linear layer with a multiple of {ROWS} outputs and of "
            f"{COLUMNS} inputs, under prune.scope=n:m with prune.nm=2:4"
        )
    stored: Tensors = {name: tensor.contiguous() for name, tensor in state.items() if name not in packed}
    for name in packed:
        weight = rounded(name, state[name], values)
        stored[f"{name}/packed"], stored[f"{name}/meta"] = _torchs().sparse_semi_structured_from_dense_cutlass(weight)
    return sealed.write(path, KIND, stored, {"values": values, "tensors": json.dumps(packed), **about}), dense


def by_reason(dense: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> the tensors that are dense for it."""
    return {why: [name for name in dense if dense[name] == why] for why in dict.fromkeys(dense.values())}


def _why_dense(kept: torch.Tensor) -> str:
    """What keeps a weight from being packed; empty where nothing does."""
    if kept.dim() != 2:
        return "no weight of a linear layer"
    if kept.shape[0] % ROWS or kept.shape[1] % COLUMNS:
        return f"outputs x inputs no multiple of {ROWS} x {COLUMNS}"
    within = bool((kept.unflatten(1, (-1, 4)).sum(2) <= 2).all())
    return "" if within else "more than 2 of 4 consecutive inputs kept"


def _torchs() -> ModuleType:
    """Torch's module of conversions, which work on any device; it is private, and may move."""
    try:
        from torch.sparse import _semi_structured_conversions as found
    except ImportError:
        raise UserError(
            f"torch {torch.__version__} has no torch.sparse._semi_structured_conversions, which 2.9 to 2.14 have; "
            "install one of these, or use --format=sparse"
        ) from None
    return found


def read_semi_structured(path: Path) -> Tensors:
    """The state, in full shapes, on any machine: packed weights as float32, pruned ones 0; all else as it was.

    Raises:
        UserError: naming a file that is missing, damaged, or not of this kind, or a torch without the conversion.
    """
    return sealed.read(path, KIND, _unpacked)[0]


def _unpacked(metadata: Mapping[str, str], stored: Tensors) -> tuple[Tensors, list[str], torch.dtype]:
    names: list[str] = json.loads(metadata["tensors"])
    for name in names:
        packed, meta = stored.pop(f"{name}/packed"), stored.pop(f"{name}/meta")
        stored[name] = _torchs().sparse_semi_structured_to_dense_cutlass(packed, meta).float()
    return stored, names, VALUES[metadata["values"]]


def load_semi_structured(path: Path, model: nn.Module, device: str | torch.device = "cuda") -> nn.Module:
    """Fill a model for inference on an NVIDIA GPU, its 2:4 weights as torch's semi-structured tensors.

    It then takes and gives the file's type, fp16 or bf16. Linear layers run on sparse tensor cores; a packed weight
    that is not ``weight`` of a ``nn.Linear`` stays dense.

    Args:
        path: of a file that :func:`write_semi_structured` made.
        model: with parameters and buffers of these names; it is changed, and returned.
        device: a GPU of compute capability 8.0 or higher.

    Raises:
        UserError: no such GPU, a model that the file does not fill, or as :func:`read_semi_structured`.
    """
    device = torch.device(device)
    if missing := _missing(device):
        raise UserError(f"device={str(device)!r}: {missing}; read_semi_structured reads the file on any machine")
    state, names, dtype = sealed.read(path, KIND, _unpacked)
    fill(model, state)
    model.to(device, dtype).eval()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and f"{name}.weight" in names:
            sparse = torch.sparse.to_sparse_semi_structured(layer.weight.detach())
            layer.weight = nn.Parameter(sparse, requires_grad=False)
    return model


def _missing(device: torch.device) -> str:
    """What the device lacks for 2:4 products; empty where nothing."""
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return "sparse tensor cores need an NVIDIA GPU, and a torch that is built for CUDA and finds it"
    found = torch.cuda.get_device_capability(device)
    return "" if found >= (8, 0) else f"2:4 needs compute capability 8.0, this GPU has {found[0]}.{found[1]}"

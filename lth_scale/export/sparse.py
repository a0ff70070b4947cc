"""The sparse file: for each masked tensor which weights survive, and those; all else as it is. docs/export.md has it.

A mask is stored as its bits, or their LZMA stream where that is shorter, so it never takes more than one bit a weight.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lth_scale.bits import size_in_bytes
from lth_scale.errors import UserError, unknown
from lth_scale.export import sealed
from lth_scale.export.sealed import Tensors
from lth_scale.masks import Bits, Mask

KIND = sealed.Kind("sparse")
VALUES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
LARGEST = 127  # of int8; symmetric, so that -128 is not used


def write_sparse(
    state: Mapping[str, torch.Tensor], mask: Mask, path: Path, about: Mapping[str, str], values: str
) -> int:
    """Write a state's weights and buffers, whole or not at all; the file's bytes.

    Args:
        state: name -> tensor; of masked ones only survivors are stored.
        mask: of some of them.
        path: of the file.
        about: further metadata, as texts.
        values: of the survivors: fp32, fp16, bf16, or int8 with one scale for each output (the first dimension).

    Raises:
        UserError: another word for values, a weight that fp16 cannot hold, or the system refuses the write.
    """
    if values not in VALUES:
        raise unknown("--values", values, VALUES)
    stored: Tensors = {}
    coding: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        if name not in mask:
            stored[name] = tensor.contiguous()
            continue
        kept = mask[name]
        how, stored[f"{name}/mask"] = _coded(kept)
        coding[name] = {"shape": list(tensor.shape), "mask": how}
        stored |= {f"{name}/{part}": held for part, held in _values(name, tensor, kept, values).items()}
    return sealed.write(path, KIND, stored, {"values": values, "tensors": json.dumps(coding), **about})


def _coded(kept: torch.Tensor) -> tuple[str, torch.Tensor]:
    bits = np.packbits(kept.numpy().reshape(-1), bitorder="little")
    small = np.frombuffer(lzma.compress(bits.tobytes(), lzma.FORMAT_ALONE), np.uint8)
    return ("lzma", torch.from_numpy(small.copy())) if len(small) < len(bits) else ("bits", torch.from_numpy(bits))


def _values(name: str, tensor: torch.Tensor, kept: torch.Tensor, values: str) -> Tensors:
    left = tensor[kept]
    if values != "int8":
        return {"values": rounded(name, left, values)}
    scale = (tensor * kept).reshape(len(tensor), -1).abs().amax(1) / LARGEST
    each = scale.repeat_interleave(kept.reshape(len(kept), -1).sum(1))
    return {"values": (left / each.clamp_min(torch.finfo(scale.dtype).tiny)).round().to(torch.int8), "scale": scale}


def rounded(name: str, tensor: torch.Tensor, values: str) -> torch.Tensor:
    """The weights of that name in another float type. Raises UserError where it cannot hold them."""
    made = tensor.to(VALUES[values])
    if not bool(made.isfinite().all()):
        raise UserError(f"--values={values} cannot hold the weights of {name}; choose bf16, with the range of fp32")
    return made


def read_sparse(path: Path) -> Tensors:
    """The state, in full shapes: pruned weights 0, the others float32, and what was not masked as it was.

    Raises:
        UserError: naming a file that is missing, damaged, or not of this kind.
    """
    return read_masked(path)[0]


def read_described(path: Path) -> tuple[Tensors, dict[str, str]]:
    """(The state as :func:`read_sparse` gives it, the file's metadata); raises the same."""
    return sealed.read(path, KIND, lambda about, stored: (_unpacked(about, stored)[0], dict(about)))


def read_masked(path: Path) -> tuple[Tensors, Tensors]:
    """(The state as :func:`read_sparse` gives it, name -> bool mask of what is masked); raises the same."""
    return sealed.read(path, KIND, _unpacked)


def _unpacked(metadata: Mapping[str, str], stored: Tensors) -> tuple[Tensors, Tensors]:
    state: Tensors = {}
    masks: Tensors = {}
    for name, how in json.loads(metadata["tensors"]).items():
        parts = {
            part: stored.pop(f"{name}/{part}") for part in ("mask", "values", "scale") if f"{name}/{part}" in stored
        }
        masks[name] = _kept(tuple(how["shape"]), how["mask"], parts["mask"])
        state[name] = _dense(masks[name], parts)
    return state | stored, masks


DECODERS: dict[str, Callable[[bytes], bytes]] = {"bits": bytes, "lzma": lzma.decompress}


def _kept(shape: tuple[int, ...], coding: str, stored: torch.Tensor) -> torch.Tensor:
    size = prod(shape)
    bits = np.frombuffer(DECODERS[coding](stored.numpy().tobytes()), np.uint8)
    if len(bits) != size_in_bytes(size):
        raise ValueError(f"a mask is not {size} bits")
    return torch.from_numpy(Bits(bits, 0, size)[:].copy()).reshape(shape)


def _dense(kept: torch.Tensor, parts: Tensors) -> torch.Tensor:
    left = parts["values"].float()
    if "scale" in parts:
        left = left * parts["scale"].repeat_interleave(kept.reshape(len(kept), -1).sum(1))
    found = torch.zeros(kept.shape)
    found[kept] = left
    return found

"""The sparse file: for each masked tensor which weights survive, and those; all else as it is. docs/export.md has it.

A mask is stored as its bits, or their LZMA stream where that is shorter, so it never takes more than one bit a weight.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lth_scale import files
from lth_scale.bits import size_in_bytes
from lth_scale.checkpoint import Entry
from lth_scale.checkpoint.stored import seal
from lth_scale.errors import UserError, unknown
from lth_scale.masks import Bits, Mask
from lth_scale.tickets import stream

FORMAT, VERSION = "lth_scale.sparse", "1"
VALUES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
LARGEST = 127  # of int8; symmetric, so that -128 is not used

Tensors = dict[str, torch.Tensor]


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
    told = {"format": FORMAT, "version": VERSION, "values": values, "tensors": json.dumps(coding), **about}
    told["contents"] = _digest(stored)
    entries = {n: (Entry(tuple(t.shape), t.dtype), partial(_pieces, t)) for n, t in stored.items()}
    return stream(path, entries, told | {"sha256": seal(told)})


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    yield tensor.flatten()


def _coded(kept: torch.Tensor) -> tuple[str, torch.Tensor]:
    bits = np.packbits(kept.numpy().reshape(-1), bitorder="little")
    small = np.frombuffer(lzma.compress(bits.tobytes(), lzma.FORMAT_ALONE), np.uint8)
    return ("lzma", torch.from_numpy(small.copy())) if len(small) < len(bits) else ("bits", torch.from_numpy(bits))


def _values(name: str, tensor: torch.Tensor, kept: torch.Tensor, values: str) -> Tensors:
    left = tensor[kept]
    if values != "int8":
        made = left.to(VALUES[values])
        if not bool(made.isfinite().all()):
            raise UserError(f"--values={values} cannot hold the weights of {name}; choose bf16, fp32 or int8")
        return {"values": made}
    scale = (tensor * kept).reshape(len(tensor), -1).abs().amax(1) / LARGEST
    each = scale.repeat_interleave(kept.reshape(len(kept), -1).sum(1))
    return {"values": (left / each.clamp_min(torch.finfo(scale.dtype).tiny)).round().to(torch.int8), "scale": scale}


def _digest(stored: Mapping[str, torch.Tensor]) -> str:
    parts = [f"{name} {tensor.dtype} {tuple(tensor.shape)}" for name, tensor in sorted(stored.items())]
    sums = [
        files.sha256_bytes(t.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for _, t in sorted(stored.items())
    ]
    return files.sha256_bytes("\n".join([*parts, *sums]).encode())


def read_sparse(path: Path) -> Tensors:
    """The state, in full shapes: pruned weights 0, the others float32, and what was not masked as it was.

    Raises:
        UserError: naming a file that is missing, damaged, or not of this kind.
    """
    metadata, stored = _opened(path)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise UserError(
            f"{path} is not a sparse file of version {VERSION}; lth ticket export --format sparse makes one"
        )
    try:
        if metadata["sha256"] != seal(metadata) or metadata["contents"] != _digest(stored):
            raise ValueError("it does not match its checksums")
        found: Tensors = {}
        for name, how in json.loads(metadata["tensors"]).items():
            parts = {
                part: stored.pop(f"{name}/{part}") for part in ("mask", "values", "scale") if f"{name}/{part}" in stored
            }
            found[name] = _dense(tuple(how["shape"]), how["mask"], parts)
        return found | stored
    except (KeyError, ValueError, TypeError, lzma.LZMAError, RuntimeError) as error:
        raise UserError(f"{path} is damaged ({error}); make it anew") from None


def _opened(path: Path) -> tuple[dict[str, str], Tensors]:
    try:
        with safe_open(path, framework="pt") as held:
            return dict(held.metadata() or {}), {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}); make it anew") from None


DECODERS: dict[str, Callable[[bytes], bytes]] = {"bits": bytes, "lzma": lzma.decompress}


def _dense(shape: tuple[int, ...], coding: str, parts: Tensors) -> torch.Tensor:
    size = prod(shape)
    bits = np.frombuffer(DECODERS[coding](parts["mask"].numpy().tobytes()), np.uint8)
    if len(bits) != size_in_bytes(size):
        raise ValueError(f"a mask is not {size} bits")
    kept = torch.from_numpy(Bits(bits, 0, size)[:].copy()).reshape(shape)
    left = parts["values"].float()
    if "scale" in parts:
        left = left * parts["scale"].repeat_interleave(kept.reshape(shape[0], -1).sum(1))
    found = torch.zeros(shape)
    found[kept] = left
    return found

"""Atomic, checksummed, strategy-neutral training states: flat ranges of named tensors per rank, a manifest last."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save

from lth_scale import files
from lth_scale.errors import UserError

MANIFEST = "MANIFEST.json"
FORMAT = 1


@dataclass(frozen=True)
class State:
    """Everything that training goes on from, under plain parameter names, on the CPU.

    Args:
        weights: parameter name -> tensor of its full shape, in fp32.
        buffers: buffer name -> tensor.
        optimizer: parameter name -> state key (such as ``exp_avg``) -> tensor; empty before the first step.
        step: global batches consumed since the initialisation.
    """

    weights: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    step: int = 0

    def flat(self) -> dict[str, torch.Tensor]:
        """One table of ``weights/NAME``, ``buffers/NAME`` and ``optimizer/NAME/KEY``."""
        table = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        table |= {f"buffers/{name}": tensor for name, tensor in self.buffers.items()}
        table |= {
            f"optimizer/{n}/{key}": tensor for n, entries in self.optimizer.items() for key, tensor in entries.items()
        }
        return table

    def sha256(self) -> str:
        """Hash over all of it, bit for bit."""
        return files.sha256_tensors(self.flat())

    def masked(self, mask: Mapping[str, torch.Tensor]) -> State:
        """The state times the mask: weights and optimizer state of pruned places are +0.0. Always copies."""
        return State(
            {name: _masked(tensor, mask.get(name)) for name, tensor in self.weights.items()},
            {name: tensor.clone() for name, tensor in self.buffers.items()},
            {n: {k: _masked(t, mask.get(n)) for k, t in entries.items()} for n, entries in self.optimizer.items()},
            self.step,
        )

    def differences(self, other: State) -> list[str]:
        """Names whose bits differ between two states, or that only one of them has."""
        mine, theirs = self.flat(), other.flat()
        return [n for n in sorted(mine.keys() | theirs.keys()) if not _same_bits(mine.get(n), theirs.get(n))]


def _masked(tensor: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
    if keep is None or keep.shape != tensor.shape:  # unprunable, or a scalar such as Adam's step counter
        return tensor.clone()
    return torch.where(keep, tensor, torch.zeros((), dtype=tensor.dtype))


def _same_bits(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    flat_a, flat_b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(flat_a, flat_b)


def save_state(folder: Path, state: State, extra: Mapping[str, Any] | None = None) -> int:
    """Write a state as one atomic folder; returns the bytes stored. ``extra`` is any JSON, kept in the manifest."""
    scratch = files.temporary(folder)
    try:
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.flat().items()})
        files.write_bytes(scratch / "rank_00000.safetensors", data)
        files.write_json(scratch / MANIFEST, _manifest(state, data, dict(extra or {})))
        with files.explained(folder):
            os.replace(scratch, folder)
            files.sync_folder(folder.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # gone already when all went well
    return len(data)


def _manifest(state: State, data: bytes, extra: dict[str, Any]) -> dict[str, Any]:
    ranges = [
        {"name": n, "rank": 0, "offset": 0, "length": t.numel(), "shape": list(t.shape), "dtype": str(t.dtype)}
        for n, t in state.flat().items()
    ]
    file = {"name": "rank_00000.safetensors", "bytes": len(data), "sha256": files.sha256_bytes(data)}
    return {
        "format": FORMAT,
        "step": state.step,
        "world_size": 1,
        "files": [file],
        "ranges": ranges,
        "torch": torch.__version__,
        "extra": extra,
    }


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved state; raises UserError naming a missing or damaged one."""
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder} is not a complete checkpoint: {MANIFEST} is missing")
    manifest = files.read_json(folder / MANIFEST)
    named = re.match(r"step_(\d+)", folder.name)  # its number stands in no file that has a checksum
    try:
        whole = all(set(file) >= {"name", "bytes", "sha256"} for file in manifest["files"])
        if not whole or (named and int(named[1]) != manifest["step"]):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / MANIFEST} is damaged; restore it or remove {folder}") from None
    return dict(manifest)


def load_state(folder: Path) -> State:
    """Read a state after its checksums hold; raises UserError naming the damaged file."""
    manifest = load_manifest(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in manifest["files"]:
        path = folder / file["name"]
        data = path.read_bytes() if path.exists() else b""
        if files.sha256_bytes(data) != file["sha256"]:
            raise UserError(f"{path} is damaged: its checksum is not the manifest's; restore it or remove {folder}")
        tensors |= parse_safetensors(data)
    state = State({}, {}, {}, int(manifest["step"]))
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part == "optimizer":
            parameter, _, key = rest.rpartition("/")
            state.optimizer.setdefault(parameter, {})[key] = tensor
        else:
            getattr(state, part)[rest] = tensor
    return state


def candidates(folder: Path) -> list[Path]:
    """Checkpoints of a round, highest (step, attempt) first; nothing is said about their soundness."""
    found = [path for path in folder.glob("step_*.attempt_*") if path.is_dir()]
    return sorted(found, key=lambda path: tuple(int(p.rpartition("_")[2]) for p in path.name.split(".")), reverse=True)


def latest(folder: Path) -> tuple[Path, State] | None:
    """The highest step whose manifest verifies; damaged ones are passed over, loudly."""
    for path in candidates(folder):
        try:
            return path, load_state(path)
        except UserError as error:
            print(f"warning: {error}; going back to an earlier checkpoint", file=sys.stderr, flush=True)
    return None


def sound(folder: Path) -> bool:
    """Whether a saved state is there and its checksums hold."""
    try:
        load_state(folder)
    except UserError:
        return False
    return True


def publish(folder: Path, state: State, attempt: int, extra: Mapping[str, Any]) -> int:
    """Save ``step_NNNNNNNN.attempt_N``, verify it, and only then remove older ones; returns the bytes stored."""
    path = folder / f"step_{state.step:08d}.attempt_{attempt}"
    size = save_state(path, state, extra)
    load_state(path)
    for old in candidates(folder):
        if old != path:
            files.remove_folder(old)
    return size

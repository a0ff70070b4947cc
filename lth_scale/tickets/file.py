"""The ticket file: mask, weights, config, provenance and checksums in one safetensors file; docs/tickets.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open

from lth_scale.bits import Bits, size_in_bytes
from lth_scale.checkpoint import Composite, Entry, Source
from lth_scale.checkpoint.layout import DTYPES, Range, mapped
from lth_scale.checkpoint.source import assembled
from lth_scale.checkpoint.stored import seal
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.tickets.streaming import Pieces, stream

FORMAT = "lth_scale.ticket"
VERSION = "1"
STATES = ("theta_k", "theta_T")


@dataclass(frozen=True)
class Ticket:
    """A mask and what is known of it.

    Args:
        mask: which weights survive.
        states: weights and buffers, not masked: ``theta_k``, where the ticket starts, and ``theta_T``, where a training
            of it ended; those that are at hand.
        config: of the run, or of the model, as YAML; empty where none is known.
        provenance: plain values.
    """

    mask: Mask
    states: Mapping[str, Source] = field(default_factory=dict)
    config: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def checksums(self) -> dict[str, str]:
        """The mask's hash and each state's digest, over weights and buffers alone."""
        return {"mask": self.mask.sha256(), **{part: state.digest() for part, state in self._plain.items()}}

    @cached_property
    def sections(self) -> dict[str, Any]:
        """The config as a tree; empty where there is none."""
        tree = yaml.safe_load(self.config)
        return tree if isinstance(tree, dict) else {}

    @property
    def _plain(self) -> dict[str, Source]:
        """The states without optimizer state."""
        return {part: Composite(state, state, None, state.step) for part, state in self.states.items()}

    def _tensors(self) -> Iterator[tuple[str, tuple[Entry, Pieces]]]:
        for name, shape in self.mask.shapes.items():
            size, bits = prod(shape), self.mask.range(name, 0, prod(shape))
            yield f"mask/{name}", (Entry((size_in_bytes(size),), torch.uint8), partial(_packed, bits))
        for part, state in self._plain.items():
            for key, entry in state.entries().items():
                yield f"{part}/{key}", (entry, partial(state.pieces, key, entry))

    def _metadata(self) -> dict[str, str]:
        checksums = self.checksums
        states = {part: {"sha256": checksums[part], "step": state.step} for part, state in self.states.items()}
        told = {
            "format": FORMAT,
            "version": VERSION,
            "config": self.config,
            "provenance": json.dumps(self.provenance, sort_keys=True),
            "mask": json.dumps({"sha256": checksums["mask"], "shapes": self.mask.shapes}, sort_keys=True),
            "states": json.dumps(states, sort_keys=True),
        }
        return told | {"sha256": seal(told)}


def _packed(bits: Bits) -> Iterator[torch.Tensor]:
    for piece in bits.pieces():
        yield torch.from_numpy(piece if piece.flags.writeable else piece.copy())


def pack(ticket: Ticket, path: Path) -> int:
    """Write a ticket file, whole or not at all; its bytes. States are read by ranges, twice, and never held.

    Equal tickets give equal bytes. Raises UserError for a damaged source, or when the system refuses the write.
    """
    metadata = ticket._metadata()
    return stream(path, dict(ticket._tensors()), metadata)


def is_ticket(path: Path) -> bool:
    """Whether a file says that it is a ticket. Raises UserError naming one that is missing or damaged."""
    return _header(path)[0].get("format") == FORMAT


def load(path: Path) -> Ticket:
    """Map what :func:`pack` wrote, after all of its checksums were found to hold.

    Raises:
        UserError: naming a file that is missing, damaged, or not a ticket of this version.
    """
    metadata, table = _header(path)
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path} is not a ticket file of version {VERSION}; lth ticket pack makes one")
    try:
        if metadata.get("sha256") != seal(metadata):
            raise ValueError("its metadata do not match their checksum")
        shapes = {name: tuple(shape) for name, shape in json.loads(metadata["mask"])["shapes"].items()}
        tensors = mapped(path, [_range(name, entry) for name, entry in table.items()])
        found = Ticket(
            _mask(shapes, tensors),
            dict(_states(json.loads(metadata["states"]), table, tensors)),
            metadata["config"],
            json.loads(metadata["provenance"]),
        )
        _check(found, metadata, tensors)
        found.sections  # noqa: B018
    except (KeyError, TypeError, ValueError, AttributeError, OSError, yaml.YAMLError) as error:
        raise _damaged(path, error) from None
    return found


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); get it anew from where it came")


def _header(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """(Metadata, name -> entry) of a safetensors file that the library finds whole."""
    try:
        with safe_open(path, framework="pt") as checked:
            metadata = dict(checked.metadata() or {})
        with path.open("rb") as found:
            table: dict[str, Any] = json.loads(found.read(int.from_bytes(found.read(8), "little")))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged, or no safetensors file ({error}); get it anew") from None
    table.pop("__metadata__", None)
    return metadata, table


def _range(name: str, entry: Mapping[str, Any]) -> Range:
    shape = tuple(entry["shape"])
    return Range(name, 0, 0, prod(shape), shape, DTYPES[entry["dtype"]])


def _mask(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, torch.Tensor]) -> Mask:
    bits = {}
    for name, shape in shapes.items():
        data, size = tensors[f"mask/{name}"].numpy(), prod(shape)
        if data.dtype != np.uint8 or len(data) != size_in_bytes(size) or (size % 8 and data[-1] >> size % 8):
            raise ValueError(f"mask/{name} is not {size} bits")
        bits[name] = Bits(data, 0, size)
    return Mask.of(shapes, bits)


def _states(
    told: Mapping[str, Any], table: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, Source]]:
    for part, about in told.items():
        if part not in STATES:
            raise ValueError(f"{part} is none of its parts")
        held = {name.removeprefix(f"{part}/"): name for name in table if name.startswith(f"{part}/")}
        yield part, assembled({k: tensors[n].reshape(table[n]["shape"]) for k, n in held.items()}, about["step"])


def _check(found: Ticket, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError unless exactly the stated tensors are there, bit for bit."""
    if dict(found._tensors()).keys() != tensors.keys():
        raise ValueError("it holds other tensors than it says")
    stated = {"mask": json.loads(metadata["mask"]), **json.loads(metadata["states"])}
    if wrong := [part for part, digest in found.checksums.items() if digest != stated[part]["sha256"]]:
        raise ValueError(f"its {' and '.join(wrong)} do not match their checksum")

"""``lth ticket``: what makes a file. What looks at one is next door."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lth_scale.errors import UserError, unknown
from lth_scale.words import following, parser

if TYPE_CHECKING:
    from lth_scale.export.network import Network
    from lth_scale.export.sources import Chosen


class Flags(Protocol):
    """Those that formats ask for."""

    place: str
    values: str | None
    whole: bool


def ticket(words: list[str]) -> int:
    """Run one of the commands on tickets; the exit code."""
    from lth_scale.export import benching, looking

    making = {"export": export, "pack": pack, "import": import_}
    actions = {**making, "show": looking.show, "diff": looking.diff, "bench": benching.bench}
    if not words or words[0] not in actions:
        raise unknown("ticket", words[0] if words else "", actions)
    return actions[words[0]](words[1:])


def export(words: list[str]) -> int:
    """One file from a run folder, or from the folder of a saved state."""
    from lth_scale.export import choose, images

    made = parser("ticket export", "place")
    for option, default in (("--out", None), ("--format", "safetensors"), ("--arm", "ticket")):
        made.add_argument(option, default=default)
    for option in ("--seed", "--round"):
        made.add_argument(option, type=int)
    made.add_argument("--theta", action="store_true")
    made.add_argument("--whole", action="store_true")
    made.add_argument("--values")
    made.add_argument("--data.dir", default="")
    flags = made.parse_args(words)
    if not flags.place or not flags.out:
        raise UserError("ticket export needs a run folder and a file: lth ticket export RUN --out FILE")
    if flags.format not in FORMATS:
        raise unknown("--format", flags.format, FORMATS)
    found = choose(Path(flags.place), flags.seed, flags.arm, flags.round, flags.theta)
    chosen = images.moved(found, getattr(flags, "data.dir"))
    told = ", ".join(f"{key} {value}" for key, value in chosen.about.items() if key not in ("mask", "theta_k"))
    size, more, then = FORMATS[flags.format](chosen, Path(flags.out), flags)
    print(f"{flags.out}: {size:,} bytes, {told}")
    for line in filter(None, more):
        print(line)
    print(f"next: {then}")
    return 0


Told = tuple[int, list[str], str]
"""Bytes, what else is to be said, and what to do with the file."""


def _safetensors(chosen: Chosen, out: Path, flags: Flags) -> Told:
    from lth_scale.export import write

    count = len(chosen.state.entries())
    return write(chosen.state, out, chosen.about), [f"{count} tensors"], "safetensors.torch.load_file in any program"


def _sparse(chosen: Chosen, out: Path, flags: Flags) -> Told:
    from lth_scale.export.multiplying import description
    from lth_scale.export.sparse import write_sparse

    mask, state = chosen.needed("--format=sparse"), chosen.tensors()
    size = write_sparse(state, mask, out, chosen.about | description(chosen.config), flags.values or "fp32")
    dense = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    return size, [f"{dense / size:.2f} times smaller than its tensors"], "lth_scale.export.load_sparse runs it"


def _semi_structured(chosen: Chosen, out: Path, flags: Flags) -> Told:
    from lth_scale.export.semi_structured import by_reason, write_semi_structured

    mask, values = chosen.needed("--format=semi_structured"), flags.values or "fp16"
    size, dense = write_semi_structured(chosen.tensors(), mask, out, chosen.about, values)
    told = [f"{len(mask) - len(dense)} of {len(mask)} masked tensors are packed, in {values}"]
    told += [f"dense, {why}: {', '.join(names)}" for why, names in by_reason(dense).items()]
    return size, told, "lth_scale.export.load_semi_structured in Python, on an NVIDIA GPU"


def _onnx(chosen: Chosen, out: Path, flags: Flags) -> Told:
    from lth_scale.export.programs import write_onnx

    return _program(write_onnx, chosen, out, flags, "examples/onnx_inference.py shows how to run it")


def _onnx_int8(chosen: Chosen, out: Path, flags: Flags) -> Told:
    from lth_scale.export import images
    from lth_scale.export.quantising import export_int8

    def write(found: Network, path: Path) -> tuple[int, float]:
        return export_int8(found, images.load(chosen), path)

    return _program(write, chosen, out, flags, f"lth ticket bench {flags.place} measures what rounding costs")


def _torch_export(chosen: Chosen, out: Path, flags: Flags) -> Told:
    from lth_scale.export.programs import write_torch_export

    return _program(write_torch_export, chosen, out, flags, "torch.export.load in any program")


def _program(write: Callable[..., tuple[int, float]], chosen: Chosen, out: Path, flags: Flags, then: str) -> Told:
    from lth_scale.export.network import network

    found = network(chosen, flags.whole)
    size, difference = write(found, out)
    return size, [found.told, f"largest difference of an output from the network's own: {difference:.2g}"], then


FORMATS: dict[str, Callable[[Chosen, Path, Flags], Told]] = {
    "safetensors": _safetensors,
    "sparse": _sparse,
    "semi_structured": _semi_structured,
    "onnx": _onnx,
    "onnx_int8": _onnx_int8,
    "torch.export": _torch_export,
}


def pack(words: list[str]) -> int:
    """A run folder's ticket in one file."""
    from lth_scale import tickets
    from lth_scale.tickets import of_run

    made = parser("ticket pack", "run")
    made.add_argument("--out")
    for option in ("--seed", "--round"):
        made.add_argument(option, type=int)
    flags = made.parse_args(words)
    if not flags.run or not flags.out:
        raise UserError("ticket pack needs a run folder and a file: lth ticket pack RUN --out FILE")
    found = of_run(Path(flags.run), flags.seed, flags.round)
    size, about = tickets.pack(found, Path(flags.out)), found.provenance
    print(f"{flags.out}: {size:,} bytes, seed {about['seed']}, round {about['round']}, density {about['density']:.4g}")
    return following(f"lth ticket show {flags.out}")


def import_(words: list[str]) -> int:
    """A ticket file from another program's."""
    from lth_scale import tickets
    from lth_scale.export import take

    made = parser("ticket import", "source")
    for option in ("--format", "--out"):
        made.add_argument(option)
    made.add_argument("--model", nargs="+", default=[])
    flags, rest = made.parse_known_args(words)
    if not flags.source or not flags.out or (rest and not flags.model):
        example = "lth ticket import mask.pth --format openlth --out FILE --model mnist_lenet"
        raise UserError(f"ticket import needs a file, its format, a file to make, and at will a config: {example}")
    if flags.format not in tickets.READERS:
        raise unknown("--format", flags.format, tickets.READERS)
    found = take(Path(flags.source), flags.format, [*flags.model, *rest])
    size = tickets.pack(found, Path(flags.out))
    for theirs, ours in found.provenance.get("names", {}).items():
        print(f"{theirs} -> {ours}")
    print(f"{flags.out}: {size:,} bytes, {len(found.mask)} masked tensors, density {found.mask.density:.4g}")
    return following(f"lth ticket show {flags.out}")

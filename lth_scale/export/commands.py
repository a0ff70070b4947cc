"""``lth ticket``: what makes a file. What looks at one is next door."""

from __future__ import annotations

from pathlib import Path

from lth_scale.errors import UserError, unknown
from lth_scale.words import following, parser

FORMATS = ("safetensors",)


def ticket(words: list[str]) -> int:
    """Run one of the commands on tickets; the exit code."""
    from lth_scale.export import looking

    actions = {"export": export, "pack": pack, "show": looking.show, "import": import_, "diff": looking.diff}
    if not words or words[0] not in actions:
        raise unknown("ticket", words[0] if words else "", actions)
    return actions[words[0]](words[1:])


def export(words: list[str]) -> int:
    """One file from a run folder, or from the folder of a saved state."""
    from lth_scale.export import choose, write

    made = parser("ticket export", "place")
    for option, default in (("--out", None), ("--format", "safetensors"), ("--arm", "ticket")):
        made.add_argument(option, default=default)
    for option in ("--seed", "--round"):
        made.add_argument(option, type=int)
    made.add_argument("--theta", action="store_true")
    flags = made.parse_args(words)
    if not flags.place or not flags.out:
        raise UserError("ticket export needs a run folder and a file: lth ticket export RUN --out FILE")
    if flags.format not in FORMATS:
        raise unknown("--format", flags.format, FORMATS)
    chosen = choose(Path(flags.place), flags.seed, flags.arm, flags.round, flags.theta)
    size = write(chosen.state, Path(flags.out), chosen.about)
    told = ", ".join(f"{key} {value}" for key, value in chosen.about.items() if key not in ("mask", "theta_k"))
    print(f"{flags.out}: {size:,} bytes, {len(chosen.state.entries())} tensors of {told}")
    print("next: safetensors.torch.load_file in any program of yours")
    return 0


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

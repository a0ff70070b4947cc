"""``lth ticket``."""

from __future__ import annotations

from pathlib import Path

from lth_scale.errors import UserError, unknown
from lth_scale.words import parser

FORMATS = ("safetensors",)


def ticket(words: list[str]) -> int:
    """Run one of the commands on tickets; the exit code."""
    actions = {"export": export}
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

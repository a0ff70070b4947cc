"""The command line of :mod:`lth_scale.export.bench`."""

from __future__ import annotations

import sys
from pathlib import Path

from lth_scale.errors import UserError
from lth_scale.export.sources import Chosen, choose
from lth_scale.paths import RunPaths
from lth_scale.words import console, following, parser


def bench(words: list[str]) -> int:
    """Size, latency, memory, energy and accuracy of a ticket and of its exports."""
    from lth_scale.export.bench import Plan, bench
    from lth_scale.report import speed

    made = parser("ticket bench", "place")
    made.add_argument("--arm", default="ticket")
    for option in ("--seed", "--round"):
        made.add_argument(option, type=int)
    for option, standard in (("--threads", 1), ("--repeats", Plan.repeats), ("--samples", Plan.samples)):
        made.add_argument(option, type=int, default=standard)
    made.add_argument("--seconds", type=float, default=Plan.seconds)
    for option, default in (("--batches", "1,32,256"), ("--out", ""), ("--data.dir", "")):
        made.add_argument(option, default=default)
    flags = made.parse_args(words)
    if not flags.place:
        raise UserError("ticket bench needs a ticket: lth ticket bench RUN, or a packed ticket's FILE")
    plan = Plan(_batches(flags.batches), flags.threads, flags.repeats, flags.seconds, flags.samples)
    place = Path(flags.place)
    chosen = choose(place, flags.seed, flags.arm, flags.round, False)
    out = _folder(place, chosen, flags.out)
    found = bench(chosen, plan, data_dir=getattr(flags, "data.dir"), dense=_dense(place, chosen), told=_told)
    found.write(out)
    console().print(speed.table(found))
    for line in speed.reasons(found):
        print(line)
    print(f"{out / 'bench.csv'}: {len(found.rows)} rows")
    return following(f"lth ticket show {place}" if flags.out or place.is_file() else f"lth report {place}")


def _told(line: str) -> None:
    print(line, file=sys.stderr)


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise UserError(f"--batches={text!r} is not valid; it must be whole numbers such as 1,32,256") from None


def _folder(place: Path, chosen: Chosen, asked: str) -> Path:
    """Where results go: as asked, into the round's folder, or here. Raises UserError where a file is in the way."""
    if asked:
        out = Path(asked)
    elif "round" in chosen.about:
        about = chosen.about
        out = RunPaths(place).round(int(about["seed"]), about["arm"], int(about["round"])).bench
    else:
        out = Path("bench")
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise UserError(f"--out={str(out)!r} is not valid: a file is in the way")
    return out


def _dense(place: Path, chosen: Chosen) -> Chosen | None:
    """The dense network of a run's ticket, where its weights are still there."""
    if "seed" not in chosen.about:
        return None
    try:
        return choose(place, int(chosen.about["seed"]), "ticket", 0, False)
    except UserError:
        return None

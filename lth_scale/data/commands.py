"""``lth data``: data sets made ready, and checked."""

from __future__ import annotations

from pathlib import Path

from lth_scale.data.preparing import prepare, verify
from lth_scale.errors import UserError, unknown
from lth_scale.words import following, parser


def data(words: list[str]) -> int:
    """``lth data prepare | verify``."""
    actions = {"prepare": _prepare, "verify": _verify}
    if not words or words[0] not in actions:
        raise unknown("data", words[0] if words else "", actions)
    return actions[words[0]](words[1:])


def _prepare(words: list[str]) -> int:
    made = parser("data prepare", "name")
    made.add_argument("--out")
    made.add_argument("--source", action="append")
    for option in ("--size", "--shard-size", "--max-side", "--jobs"):
        made.add_argument(option, type=int)
    flags = made.parse_args(words)
    if not flags.name or not flags.out:
        raise UserError("data prepare needs a name and a folder: lth data prepare NAME --out DIR (lth list datasets)")
    options = {key: getattr(flags, key) for key in ("size", "shard_size", "max_side", "jobs")}
    print(prepare(flags.name, Path(flags.out), flags.source, **options))
    return following(f"lth data verify {flags.out}")


def _verify(words: list[str]) -> int:
    made = parser("data verify", "folder")
    made.add_argument("--jobs", type=int)
    flags = made.parse_args(words)
    if not flags.folder:
        raise UserError("data verify needs a folder: lth data verify DIR")
    found = verify(Path(flags.folder), progress=True, jobs=flags.jobs)
    print(found)
    return following(f"lth run CONFIG --data.name={found.index.name} --data.dir={flags.folder}")

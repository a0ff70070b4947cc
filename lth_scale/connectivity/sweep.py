"""``lth connectivity``: one ordinary run for each rewind point, and the table over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from lth_scale import settings
from lth_scale.connectivity.auto import Run
from lth_scale.experiment import Experiment
from lth_scale.report import connectivity_table, read_runs, write_report
from lth_scale.words import console, following, parser

ASSUMED = ("--run.seeds=0-2", "--run.arms=[ticket]", "--connectivity.children=3")
"""What is meant when nothing else is said, whatever the config file says: three initialisations, three children."""

ALWAYS = ("--connectivity.next=true", "--connectivity.origin=true")


class Flags(Protocol):
    """What matters here of what a command was told beside the config."""

    out: str | None


Split = Callable[[list[str]], tuple[Flags, list[str]]]
"""Words -> what the command is told, and the words of the config."""


def connectivity(words: Sequence[str], split: Split, run: Run) -> int:
    """``lth connectivity CONFIG... [--at K,K] [--out DIR]``: play each K's run, then tell of all."""
    out, runs = as_runs(words, split)
    codes = [run(each) for each in runs.values()]
    return next(filter(None, codes), 0) if "--plan" in words else _tell(out, list(runs), codes)


def as_runs(words: Sequence[str], split: Split) -> tuple[Path, dict[Path, list[str]]]:
    """(Where they go, run folder -> the words of its ``lth run``), one for each rewind point.

    Raises UserError when one of them cannot be run.
    """
    made = parser("connectivity")
    made.add_argument("--at")
    flags, given = made.parse_known_args(words)
    given = [*ASSUMED, *ALWAYS, *given]
    told, fields = split(list(given))
    config = settings.parse(fields)
    points = flags.at.split(",") if flags.at else [config.rewind.at]
    out = Path(told.out) if told.out else folder(settings.run_folder(fields, config))
    places = {out / f"k_{point}": point for point in points}
    for place, point in places.items():
        Experiment.at(settings.parse([*fields, f"--rewind.at={point}"]), place)
    return out, {place: [*given, f"--rewind.at={at}", "--out", str(place)] for place, at in places.items()}


def folder(run: Path) -> Path:
    """Beside the folder that the run itself would have."""
    return run.with_name(f"{run.name}-connectivity")


def _tell(out: Path, places: Sequence[Path], codes: Sequence[int]) -> int:
    known = [place for place in places if (place / "config.yaml").exists()]
    table = connectivity_table(read_runs(known)) if known else None
    if table is not None:
        console().print(table)
        print(f"report: {write_report(known, out)}")
        following("open that page in a browser")
    return next(filter(None, codes), 0)

"""``lth sweep``: the points of a sweep file as the words of ordinary runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lth_scale import settings
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.sweeps import file
from lth_scale.words import following, parser

SEEDS = "run.seeds"

Split = Callable[[list[str]], tuple[Any, list[str]]]
"""Words -> what the command is told, and the words of the config."""


def sweep(words: Sequence[str], split: Split, run: Callable[[list[str]], int]) -> int:
    """``lth sweep FILE [--out DIR] [--seed N] [what lth run takes]``: one run after the other; the first failure."""
    runs = as_runs(words, split)
    path = file.find(words[0])
    if ignored := file.load(path).ignored:
        print(f"{path}: {', '.join(ignored)} concern W&B's service only")
    codes = [run(each) for each in runs]
    if "--plan" not in words:
        following(f"lth report {Path(runs[0][-1]).parent}/*")
    return next(filter(None, codes), 0)


def as_runs(words: Sequence[str], split: Split) -> list[list[str]]:
    """The words of one ``lth run`` for each run folder, the last of them the folder.

    Points that differ in ``run.seeds`` alone are replicates of one run, which gets them all. What the command line says
    wins over the file. Raises UserError, before anything is run, when the file or a point cannot be used.
    """
    if not words or words[0].startswith("--"):
        raise UserError("sweep needs a file first: lth sweep FILE [--out DIR] [--section.key=value]")
    path = file.find(words[0])
    made = parser("sweep")
    made.add_argument("--seed", type=int, default=0)
    flags, given = made.parse_known_args(words[1:])
    found, told = file.load(path), split(given)[0]
    runs: dict[Path, tuple[Config, list[str]]] = {}
    for point in found.points(flags.seed):
        run = [*found.before, *file.words(point), *found.after, *given]
        folder, config = _checked(path, split(run)[1], Path(told.out or Path("runs") / path.stem))
        runs[folder] = (_joined(path, runs[folder][0], config) if folder in runs else config), run
    return [
        [*run, f"--{SEEDS}=[{','.join(map(str, config.run.replicates))}]", "--out", str(folder)]
        for folder, (config, run) in runs.items()
    ]


def _checked(path: Path, fields: list[str], out: Path) -> tuple[Path, Config]:
    """The folder below ``out`` and the config of one point. Raises UserError when it cannot be run."""
    try:
        config = settings.parse(fields)
        folder = out / settings.run_folder(fields, config).name
        if config.rewind.at != "auto":  # which is decided when it is run
            Experiment.at(config, folder)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return folder, config


def _joined(path: Path, there: Config, config: Config) -> Config:
    """Two points of one folder as one run. Raises UserError when more than their seeds differs."""
    old, new = settings.fields_of(there), settings.fields_of(config)
    differing = [key for key in new if key != SEEDS and old[key] != new[key]]
    if differing:
        raise UserError(
            f"{path}: {', '.join(differing)} cannot be swept: it does not change what is trained, so that all its "
            "points are one run; give it once, on the command line or in command"
        )
    return replace(config, run=replace(config.run, seeds=(*there.run.replicates, *config.run.replicates)))

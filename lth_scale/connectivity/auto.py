"""``rewind.at=auto``: the smallest rewind point from which training is stable to its noise (Frankle et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from rich.table import Table

from lth_scale import costs, files, settings
from lth_scale.config import Config
from lth_scale.costs import Cost, Sizes
from lth_scale.errors import UserError, require
from lth_scale.experiment import Experiment
from lth_scale.report.connectivity import LIMIT, by_seed, read_lines, verdict
from lth_scale.report.reading import read_run
from lth_scale.report.verdict import Interval
from lth_scale.tasks import Task, select
from lth_scale.words import console

AUTO = "auto"
CHILDREN = 3
SEEN = ("train", "validation")  # never test
BOUND = "an upper bound: subnetworks of a dense network that is stable may have been so from an earlier k"

Run = Callable[[list[str]], int]
"""``lth run``, by its words; its exit code."""


class Flags(Protocol):
    """Those of ``lth run`` that matter here."""

    plan: bool
    throughput: float | None
    jobs: int | None


@dataclass(frozen=True)
class Candidate:
    """One rewind point, and the run that tells whether it will do.

    Args:
        at: as the config has it.
        experiment: tickets and children alone; in a folder of its own below that of the run.
        tasks: what of it is needed.
        words: of the ``lth run`` that does them.
        round: whose children are compared.
    """

    at: str
    experiment: Experiment
    tasks: list[Task]
    words: list[str]
    round: int


def decided(config: Config, out: Path, fields: Sequence[str], flags: Flags, run: Run) -> str:
    """Try the candidates from the smallest on, below ``out``/auto, and stop at the first that is stable.

    What was found is in ``out``/auto/auto.json. With ``flags.plan`` nothing is trained: the candidates are priced, and
    the largest one is the answer.

    Args:
        config: with ``rewind.at`` auto.
        out: the folder of the run whose rewind point is sought.
        fields: the words of the config.
        flags: of the command line.
        run: plays a run.

    Raises UserError when a candidate is no rewind point, when a run fails, and when none is stable.
    """
    every = candidates(config, out, fields, flags.jobs)
    if flags.plan:
        console().print(price(every, flags.throughput))
        return every[-1].at
    found: dict[str, Mapping[str, Interval]] = {}
    for candidate in every:
        if not all(task.done(candidate.experiment.paths) for task in candidate.tasks) and run(candidate.words):
            raise UserError(f"rewind.candidates: the run of {candidate.at} failed; the same command goes on")
        found[candidate.at] = measured(candidate)
        if stable(found[candidate.at]):
            break
    return _concluded(config, out, found)


def candidates(config: Config, out: Path, fields: Sequence[str], jobs: int | None) -> list[Candidate]:
    """All of them, in order of k, checked. Raises UserError naming the field."""
    require(bool(config.rewind.candidates), "rewind.candidates", (), "one rewind point or more with rewind.at=auto")
    require(len(config.run.replicates) > 1, "run.seeds", config.run.replicates, "2 or more with rewind.at=auto")
    made = [_candidate(config, out, fields, jobs, at) for at in dict.fromkeys(map(str, config.rewind.candidates))]
    return sorted(made, key=lambda candidate: candidate.experiment.k)


def _candidate(config: Config, out: Path, fields: Sequence[str], jobs: int | None, at: str) -> Candidate:
    dense = config.rewind.auto == "dense"
    whole = Experiment.at(replace(config, rewind=replace(config.rewind, at=at)), out)
    last = 0 if dense else whole.plan[-1].round
    words = [
        *fields,
        f"--rewind.at={at}",
        *("--run.arms=[ticket]", "--run.patience=0"),
        "--transfer.sources=[]",
        f"--connectivity.children={config.connectivity.children or CHILDREN}",
        f"--connectivity.rounds={last}",
        *("--connectivity.next=false", "--connectivity.origin=false"),
    ]
    experiment = Experiment.at(settings.parse(words), out / AUTO / f"k_{at}")
    only = ["round=0"] if dense else []
    flags = ["--out", str(experiment.paths.root), *(["--jobs", str(jobs)] if jobs else [])]
    return Candidate(
        at,
        experiment,
        select(experiment.tasks, only),
        [*words, *flags, *(["--only", *only] if only else [])],
        last,
    )


def measured(candidate: Candidate) -> dict[str, Interval]:
    """By split, of those that may be looked at: instability over initialisations."""
    lines = read_lines(read_run(candidate.experiment.paths.root))
    asked = [line for line in lines if (line["kind"], line["round"]) == ("pair", candidate.round)]
    every = {split: by_seed(asked, "reestimated", split) for split in SEEN}
    return {split: found for split, found in every.items() if found.n}


def stable(found: Mapping[str, Interval]) -> bool:
    """Whether the upper end of every interval is below 2 points; what was not measured is not stable."""
    return bool(found) and all(verdict(interval) == "stable" for interval in found.values())


def _concluded(config: Config, out: Path, found: Mapping[str, Mapping[str, Interval]]) -> str:
    """Record what was found; the first stable one. Raises UserError when there is none."""
    chosen = next((at for at, intervals in found.items() if stable(intervals)), None)
    measured = {at: {split: asdict(value) for split, value in splits.items()} for at, splits in found.items()}
    record = {"schema": 1, "by": config.rewind.auto, "limit": LIMIT, "measured": measured, "chosen": chosen}
    files.write_json(out / AUTO / "auto.json", record)
    told = "; ".join(f"{at}: {_text(intervals)}" for at, intervals in found.items())
    if chosen is None:
        raise UserError(
            f"rewind.at='auto': none of rewind.candidates is stable (instability with an upper end below {LIMIT:g} "
            f"points of error): {told}; name later ones"
        )
    bound = f" ({BOUND})" if config.rewind.auto == "dense" else ""
    print(f"rewind.at={chosen}{bound}; instability: {told}")
    return chosen


def _text(intervals: Mapping[str, Interval]) -> str:
    told = (f"{split} {i.mean:.2f} [{i.low:.2f}, {i.high:.2f}]" for split, i in intervals.items())
    return ", ".join(told) or "not measured, as the tickets ended earlier"


def price(every: Sequence[Candidate], throughput: float | None) -> Table:
    """What finding out costs at most: one run for each candidate, in order, up to the first that is stable."""
    table = Table(title="rewind.at=auto: at most these runs, then the run itself", title_justify="left")
    for column in ("candidate", "step", "tasks", "steps trained", *(["GPU-hours"] if throughput else [])):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    total, tasks, trained = Cost(), 0, 0
    for candidate in every:
        experiment = candidate.experiment
        cost = costs.of_tasks(experiment, candidate.tasks, Sizes.of(experiment))
        count = sum(costs.clock_of(experiment, task).steps for task in candidate.tasks)
        total, tasks, trained = total + cost, tasks + len(candidate.tasks), trained + count
        table.add_row(candidate.at, f"{experiment.k:,}", *_figures(len(candidate.tasks), count, cost, throughput))
    table.add_section()
    table.add_row("total", "", *_figures(tasks, trained, total, throughput))
    return table


def _figures(tasks: int, steps: int, cost: Cost, throughput: float | None) -> list[str]:
    return [f"{tasks:,}", f"{steps:,}", *([f"{cost.hours(throughput):,.1f}"] if throughput else [])]

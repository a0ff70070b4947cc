"""A run folder, read: which rounds are done, what they measured, what is missing. Files only, no training code."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from lth_scale.arms import beside, label, split_draw
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.files import read_json
from lth_scale.paths import RunPaths
from lth_scale.pruning import Tensor
from lth_scale.pruning import rounds as planned_rounds
from lth_scale.settings import load
from lth_scale.tasks import tasks

Result = Mapping[str, Any]
Key = tuple[int, str, int]

SAME = 0.005  # two runs' densities differ by a rounding of counts before they differ in what was asked for

NEEDED = ("seed", "arm", "round", "attempt", "density", "tensors", "clock", "end", "flops", "seconds", "bytes")


def family(arm: str) -> str:
    """The arm that a folder belongs to: further draws ``reinit-1``, ``reinit-2`` are ``reinit``.

    Tickets of each source are an arm of their own, ``transfer.mnist.1a2b3c4d``.
    """
    return ".".join(filter(None, (split_draw(arm)[0], label(arm))))


@dataclass(frozen=True)
class RunResults:
    """The finished rounds of one run.

    Args:
        root: the run folder.
        name: how the run is called in tables and figures.
        config: the run's whole config.
        results: the contents of every result.json, in (seed, arm, round) order.
    """

    root: Path
    name: str
    config: Config
    results: tuple[Result, ...]

    @cached_property
    def by_key(self) -> dict[Key, Result]:
        """(seed, arm folder, round) -> result."""
        return {(r["seed"], r["arm"], r["round"]): r for r in self.results}

    @property
    def dense(self) -> tuple[str, int]:
        """(Arm, round) of the dense network that was trained to the end: Early-Bird ends round 0 before."""
        return ("dense_from_k", 1) if self.config.prune.early_bird else ("ticket", 0)

    @property
    def seeds(self) -> list[int]:
        """Replicates with at least one finished round."""
        return sorted({r["seed"] for r in self.results})

    @cached_property
    def arms(self) -> list[str]:
        """Arms of ``run.arms`` with at least one finished round, the ticket first, then as the config lists them."""
        found = {family(r["arm"]) for r in self.results} - set(beside)
        order = ["ticket", *self.config.run.arms]
        return [a for a in dict.fromkeys(order) if a in found] + sorted(found - set(order))

    @property
    def local(self) -> list[str]:
        """The arms that train this run's own tickets: all but those with the label of a source."""
        return [arm for arm in self.arms if not label(arm)]

    def rounds(self, arm: str) -> list[int]:
        """The rounds of an arm that at least one replicate has finished."""
        return sorted({r["round"] for r in self.results if family(r["arm"]) == arm})

    def draws(self, seed: int, arm: str, number: int) -> list[Result]:
        """The finished results of one replicate's round: one, or one per draw of a control."""
        return [r for r in self.results if r["seed"] == seed and r["round"] == number and family(r["arm"]) == arm]

    @cached_property
    def thirds(self) -> bool:
        """Whether the schedule drops, so that accuracy at 1/3 and 2/3 stands in for the early-stopping iteration."""
        return any(r.get("thirds") for r in self.results)

    @property
    def moments(self) -> list[str]:
        """The moments at which test accuracy is compared: the end first."""
        return ["end", "third_1", "third_2"] if self.thirds else ["end", "early_stop"]

    @cached_property
    def last_round(self) -> int:
        """R, the planned last round; prune.rounds where prune.to decides and nothing is known of the tensors yet."""
        prune = self.config.prune
        if prune.schedule == "rate" and prune.to is not None and not self.results:
            return prune.rounds
        tensors = self.results[0]["tensors"] if self.results else {}
        return planned_rounds(prune, [Tensor(name, (t["numel"],), t["kind"]) for name, t in tensors.items()])

    @cached_property
    def planned(self) -> list[Key]:
        """Every (seed, arm folder, round) that the config asks for."""
        every = tasks(self.config, self.last_round)
        paths = RunPaths(self.root)
        return [(task.seed, task.arm, task.round) for task in every if task.trains and not task.stopped(paths)]

    def missing(self) -> list[Key]:
        """Planned rounds without a result."""
        return [key for key in self.planned if key not in self.by_key]

    def started(self) -> list[Key]:
        """Rounds that somebody began and that have no result yet: running now, or interrupted."""
        markers = ("result.json", "line.json", "stopped.json")
        every = sorted(self.root.glob("seed_*/*/round_*"))
        folders = [path for path in every if not any((path / marker).exists() for marker in markers)]
        begun = [p for p in folders if (p / "attempts").is_dir() or (p / "claims").is_dir()]
        return [(int(p.parts[-3][5:]), p.parts[-2], int(p.name[6:])) for p in begun]


def _checked(path: Path) -> Result:
    result = read_json(path)
    if not isinstance(result, dict) or result.get("schema") != 1:
        raise UserError(f"{path} is damaged (not a result of schema 1); remove it to have it made anew")
    absent = [key for key in NEEDED if key not in result]
    if absent:
        raise UserError(f"{path} is damaged (it lacks {', '.join(absent)}); remove it to have it made anew")
    return result


def read_run(run: Path | str | RunResults, name: str | None = None) -> RunResults:
    """Read a run folder; a run that was read already is returned as it is.

    Raises UserError when the folder is not a run, or naming a damaged file in it.
    """
    if isinstance(run, RunResults):
        return run
    root = Path(run)
    paths = RunPaths(root)
    if not paths.config.is_file():
        raise UserError(
            f"{root} is not a run folder: {paths.config} does not exist; `lth status` lists the runs there are"
        )
    results = sorted(map(_checked, paths.results()), key=lambda r: (r["seed"], r["arm"], r["round"]))
    return RunResults(root, name or root.resolve().name, load(paths.config), tuple(results))


def read_runs(runs: Sequence[Path | RunResults]) -> list[RunResults]:
    """Read several runs under distinct names: the folder's, behind its parent's where two are called the same."""
    if not runs:
        raise UserError("RUN is not given; name at least one run folder (`lth status` lists them)")
    paths = [run.root if isinstance(run, RunResults) else Path(run) for run in runs]
    names = [path.resolve().name for path in paths]
    labels = [f"{p.resolve().parent.name}/{n}" if names.count(n) > 1 else n for p, n in zip(paths, names, strict=True)]
    return [read_run(run, label) for run, label in zip(runs, labels, strict=True)]


CURVE_COLUMNS = ("step", "split", "loss", "accuracy", "samples")


def read_curve(path: Path) -> pd.DataFrame:
    """One attempt's metrics.csv; raises UserError naming a missing or damaged one."""
    try:
        frame = pd.read_csv(io.StringIO(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist although its round is done; remove the round's result.json to redo it"
        ) from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path} is damaged ({error}); remove its round's result.json to redo it") from None
    if list(frame.columns) != list(CURVE_COLUMNS):
        raise UserError(
            f"{path} is damaged (its header is not {','.join(CURVE_COLUMNS)}); remove its round's result.json"
        )
    return frame


def curves(runs: Iterable[RunResults]) -> pd.DataFrame:
    """The attempts that count: run, replicate, arm, round, step, split, loss, accuracy (in [0, 1]), samples."""
    frames: list[pd.DataFrame] = []
    for run in runs:
        for r in run.results:
            path = RunPaths(run.root).round(r["seed"], r["arm"], r["round"]).metrics(r["attempt"])
            key = {"run": run.name, "replicate": r["seed"], "arm": r["arm"], "round": r["round"]}
            frames.append(read_curve(path).assign(**key))
    columns = ["run", "replicate", "arm", "round", *CURVE_COLUMNS]
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

"""Tickets carried over from other runs, cell by cell of source x target x density, beside their controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isclose, nan
from typing import Any

import pandas as pd

from lth_scale.arms import label
from lth_scale.config import Config
from lth_scale.ranges import expand, spans
from lth_scale.report.reading import SAME, RunResults, family
from lth_scale.report.table import accuracies, bounds, paired
from lth_scale.report.verdict import comparison, interval, matching

# Role -> its heading; the carried ticket first, then what each cell is compared with (Morcos et al. 2019, section 3).
ROLES = {
    "transfer": "carried",
    "own": "own ticket",
    "transfer_reinit": "mask, fresh weights",
    "transfer_random": "random mask",
    "transfer_dense": "dense from theta_k",
    "dense": "dense, fresh",
}
CONTROLS = {
    "own": "the target's own ticket",
    "transfer_reinit": "the source's mask reinitialised",
    "transfer_random": "random masks",
    "transfer_dense": "the dense network from the source's theta_k",
}

COLUMNS = [
    "run", "source", "target", "layers", "round", "density", "arm", "n",
    "test_accuracy", "test_accuracy_low", "test_accuracy_high",
    "pairs", "difference", "difference_low", "difference_high", "verdict",
    "transfer_pairs", "transfer_minus", "transfer_minus_low", "transfer_minus_high", "transfer_verdict",
]  # fmt: skip


def target(config: Config) -> str:
    """The data set that a run trains on: ``mnist``, ``mnist 0-4`` for some of its classes, ``digits 1x28x28``."""
    data = config.data
    chosen = [",".join(spans(expand(data.classes))), "x".join(map(str, data.shape))]
    return " ".join(filter(None, [data.name, *chosen]))


def labels(run: RunResults) -> list[str]:
    """The sources of which a run has finished rounds."""
    return list(dict.fromkeys(filter(None, map(label, run.arms))))


def matrix(runs: Sequence[RunResults]) -> pd.DataFrame:
    """Tidy: one row per (run, source, round, arm), in percentage points on the test split at the end of training.

    ``density`` is the carried ticket's, in all rows of a cell; ``arm`` is a key of ROLES. ``difference`` is the paired
    difference to the dense network with a fresh start, ``transfer_minus`` the carried ticket minus this arm, both with
    their 95 % t-intervals over the replicates. The columns are COLUMNS, also where no run has carried tickets.
    """
    return pd.DataFrame([row for run in runs for row in _rows(run)], columns=COLUMNS)


def _rows(run: RunResults) -> Iterator[dict[str, Any]]:
    for source in labels(run):
        for number in run.rounds(f"transfer.{source}"):
            density = _density(run, f"transfer.{source}", number)
            carried = accuracies(run, f"transfer.{source}", number)
            cell: dict[str, Any] = {"run": run.name, "source": source, "target": target(run.config)}
            cell |= {"layers": run.config.transfer.layers, "round": number, "density": density}
            for role in ROLES:
                place = _place(run, role, source, number, density)
                if place and (mine := accuracies(run, *place)):
                    yield cell | {"arm": role} | _measured(run, role, mine, carried)


def _measured(run: RunResults, role: str, mine: dict[int, float], carried: dict[int, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(mine), **bounds("test_accuracy", interval(list(mine.values())))}
    if role != "dense":
        difference = paired(mine, accuracies(run, *run.dense))
        row |= {"pairs": difference.n, **bounds("difference", difference)}
        row["verdict"] = matching(difference, run.config.report.tolerance)
    if role != "transfer":
        gain = paired(carried, mine)
        row |= {"transfer_pairs": gain.n, **bounds("transfer_minus", gain), "transfer_verdict": comparison(gain)}
    return row


def _density(run: RunResults, arm: str, number: int) -> float:
    found = [r["density"] for r in run.results if r["round"] == number and family(r["arm"]) == arm]
    return sum(found) / len(found) if found else nan


def _place(run: RunResults, role: str, source: str, number: int, density: float) -> tuple[str, int] | None:
    """(Arm, round) of a role in one cell; None where the run has none."""
    if role == "dense":
        return run.dense
    if role == "own":
        arm = "own" if "own" in run.arms else "ticket"
        same = [r for r in run.rounds(arm) if isclose(_density(run, arm, r), density, rel_tol=SAME)]
        return (arm, same[0]) if same else None
    arm = f"{role}.{source}"
    return arm, next(iter(run.rounds(arm)), number) if role == "transfer_dense" else number


@dataclass(frozen=True)
class Cell:
    """One source at one density on one target: for each role its row of :func:`matrix`."""

    source: str
    target: str
    layers: str
    density: float
    rows: dict[str, pd.Series]


def cells(frame: pd.DataFrame) -> list[Cell]:
    """The cells of :func:`matrix`, sources by name; a target that several runs train on is told apart by the run."""
    named, found = source_names(frame), []
    targets = frame[["run", "target"]].drop_duplicates()["target"].value_counts()
    for (run, source, _), part in frame.groupby(["run", "source", "round"], sort=False):
        first = part.iloc[0]
        rows = {row["arm"]: row for _, row in part.iterrows()}
        column = first["target"] if targets[first["target"]] == 1 else f"{first['target']} {run}"
        found.append(Cell(named[str(source)], column, first["layers"], float(first["density"]), rows))
    return found


def source_names(frame: pd.DataFrame) -> dict[str, str]:
    """Label -> its data set's name; the label where that is the target's, or two sources have it."""
    data = {source: source.partition(".")[0] for source in frame["source"]}
    taken = [*data.values()]
    own = {s for s, t in zip(frame["source"], frame["target"], strict=True) if data[s] == t.partition(" ")[0]}
    return {s: s if s in own or taken.count(name) > 1 else name for s, name in data.items()}


def sentence(frame: pd.DataFrame, tolerance: float) -> str:
    """How many cells match, and the carried tickets against each control; empty without carried tickets."""
    mine = frame[frame["arm"] == "transfer"]
    if mine.empty:
        return ""
    if not (mine["pairs"] >= 2).any():
        return "No verdict on the transferred tickets from one replicate."
    counts = mine["verdict"].value_counts()
    known = [int(counts.get(verdict, 0)) for verdict in VERBS]
    told = [f"{n} {verb[n != 1]}" for n, verb in zip(known, VERBS.values(), strict=True) if n or verb[0] == "matches"]
    told[0] += " the dense network"
    terms = f"(n = {int(mine['pairs'].max())}, tolerance {tolerance:g} points)"
    against = [part for role, name in CONTROLS.items() if (part := _against(frame[frame["arm"] == role], name))]
    opening = f"Of {len(mine)} transferred ticket{'s' * (len(mine) > 1)}, {', '.join(told)} {terms}"
    return "; ".join([opening, *against]) + "."


VERBS = {  # of one, of several
    "matching": ("matches", "match"),
    "not matching": ("does not", "do not"),
    "undecided": ("is undecided", "are undecided"),
    "no verdict": ("has no verdict", "have no verdict"),
}


def _against(rows: pd.DataFrame, name: str) -> str:
    counts = rows["transfer_verdict"].value_counts()
    told = [f"{verdict} in {counts[verdict]}" for verdict in ("better", "worse", "undecided") if verdict in counts]
    return f"against {name}: {', '.join(told)}" if told else ""

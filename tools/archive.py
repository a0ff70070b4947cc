"""A finished run as a few small text files that can be committed, and back again to what lth_scale.report reads.

results/NAME/config.yaml       the run's config, without the place of its data
results/NAME/results.csv       every measurement of every round in long form, as `lth report` writes it
results/NAME/curves.csv        validation curves, thinned to what a figure can show
results/NAME/masks.csv         how alike its masks are, where they were still there
results/NAME/blocks.csv        what each block of a vision transformer keeps
results/NAME/provenance.json   config hash, checksum of the data, versions, machine in general words, seconds
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lth_scale import files, settings
from lth_scale.errors import UserError
from lth_scale.report import RunResults, curves, read_run, tidy
from lth_scale.report.layers import blocks
from lth_scale.report.ledger import COSTS
from lth_scale.report.overlaps import within

POINTS = 40  # of a curve that is kept
CURVES = ["replicate", "arm", "round", "step", "loss", "accuracy"]
TIMES = ("train", "evaluation", "checkpoint", "device")


@dataclass(frozen=True)
class Archive:
    """One folder under results/, read."""

    folder: Path
    run: RunResults
    curves: pd.DataFrame
    masks: pd.DataFrame
    blocks: pd.DataFrame
    provenance: dict[str, Any]


def collect(run: Path, folder: Path, machine: str) -> Path:
    """Write a run folder's archive; unfinished runs are collected as far as they are."""
    read = read_run(run, folder.name)
    if not read.results:
        raise UserError(f"{run} has no finished round yet; there is nothing to collect")
    sources = tuple(f"{label}={label}" for label in read.config.transfer.places)
    config = replace(read.config, data=replace(read.config.data, dir=""))
    config = replace(config, transfer=replace(config.transfer, sources=sources))
    files.write_text(folder / "config.yaml", settings.dump(config))
    files.write_text(folder / "results.csv", tidy([read]).to_csv(index=False, lineterminator="\n"))
    files.write_text(folder / "curves.csv", _thin(read).to_csv(index=False, lineterminator="\n", float_format="%.5g"))
    for name, frame in (("masks", within(read).round(6)), ("blocks", blocks(read).round(6).reset_index())):
        if len(frame):
            files.write_text(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    files.write_json(folder / "provenance.json", _provenance(read, machine))
    return folder


def general_machine() -> str:
    """This machine in words that name nobody's: ``2-core x86-64, no GPU``."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()}-core {platform.machine().replace('_', '-')}, {device}"


def _thin(run: RunResults) -> pd.DataFrame:
    every = curves([run])
    rows = every[every["split"] == "validation"]
    grid = sorted(set(rows["step"]))
    kept = set(grid[:: max(1, ceil(len(grid) / POINTS))]) | set(grid[-1:])
    return rows[rows["step"].isin(kept)][CURVES]


def _provenance(run: RunResults, machine: str) -> dict[str, Any]:
    made = files.read_json(run.root / "provenance.json")
    planned, missing = len(run.planned), len(run.missing())
    return {
        "config_hash": settings.digest(run.config),
        "data_sha256": made["data"],
        "python": made["python"],
        "torch": made["torch"],
        "threads": made["threads"],
        "machine": machine,
        "rounds_planned": planned,
        "rounds_finished": planned - missing,
        "flags": {f"seed {r['seed']} {r['arm']} round {r['round']}": r["flags"] for r in run.results if r.get("flags")},
        "seconds": {name: round(sum(r["seconds"][name] for r in run.results), 1) for name in TIMES},
    }


def read(folder: Path) -> Archive:
    """Read an archive; its run gives lth_scale.report the same numbers as the run folder that it was made from."""
    rows = pd.read_csv(folder / "results.csv", keep_default_na=False, dtype={"value": str, "density": str})  # exact
    results = tuple(_result(key, part) for key, part in rows.groupby(["replicate", "arm", "round"]))
    run = RunResults(folder, folder.name, settings.load(folder / "config.yaml"), results)
    drawn = pd.read_csv(folder / "curves.csv").assign(split="validation")
    masks, shares = (_optional(folder / f"{name}.csv") for name in ("masks", "blocks"))
    return Archive(folder, run, drawn, masks, shares, files.read_json(folder / "provenance.json"))


def _optional(path: Path) -> pd.DataFrame:
    return pd.read_csv(path) if path.is_file() else pd.DataFrame()


def _result(key: Any, rows: pd.DataFrame) -> dict[str, Any]:
    """The inverse of table.tidy for one round; tensors are not in long form, so no figure of layers can be made."""
    seed, arm, number = int(key[0]), str(key[1]), int(key[2])
    moments: dict[str, dict[str, Any]] = {}
    for row in rows.itertuples():
        _put(moments.setdefault(str(row.moment), {}), str(row.split), str(row.metric), float(str(row.value)))
    end = moments.pop("end")
    cost = {name: end.pop(f"cost_{name}") for name in COSTS}
    seconds = {name: end.pop(f"cost_{name}_seconds", cost["device_seconds"]) for name in TIMES}
    return {
        "schema": 1,
        "seed": seed,
        "arm": arm,
        "round": number,
        "attempt": 1,
        "density": float(rows["density"].iloc[0]),
        "density_all": end.pop("density_all"),
        "tensors": {},
        "flags": [],
        "clock": {"steps": cost["steps"], "samples": cost["samples"]},
        "end": end,
        "early_stop": moments.get("early_stop"),
        "thirds": list(_thirds(moments, end)) or None,
        "flops": {"dense": cost["flops_dense"], "sparse": cost["flops_sparse"]},
        "seconds": seconds,
        "bytes": {"stored": cost["bytes"]},
    }


def _put(moment: dict[str, Any], split: str, metric: str, value: float) -> None:
    (moment.setdefault(split, {}) if split else moment)[metric] = value


def _thirds(moments: dict[str, dict[str, Any]], end: dict[str, Any]) -> Iterator[dict[str, Any]]:
    found = [moments[name] for name in ("third_1", "third_2") if name in moments]
    yield from [*found, end] if found else []

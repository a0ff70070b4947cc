"""Run folders with plausible numbers and no training: what the report is built on and tested with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lth_scale import files
from lth_scale.arms import split_draw
from lth_scale.checkpoint import State, save_state
from lth_scale.config import Config, Model, Prune, Run, Tracking
from lth_scale.config import Report as ReportConfig
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.tasks import tasks

TENSORS = {"fc1.weight": (300, 64), "fc2.weight": (100, 300), "output.weight": (10, 100)}
KINDS = {"fc1.weight": "fc", "fc2.weight": "fc", "output.weight": "output"}
STEPS, GRID = 600, 10
# The density (log) at which an arm loses a point, and how fast it falls from there.
LIMIT = {"ticket": (0.022, 1.6), "reinit": (0.25, 1.15), "random": (0.33, 1.35)}
LIMIT |= {"transfer": (0.15, 1.4), "transfer_reinit": (0.28, 1.2), "transfer_random": (0.34, 1.4)}
LIMIT |= {"own": LIMIT["ticket"], "transfer_dense": LIMIT["ticket"]}


def config(
    rounds: int = 16, seeds: Iterable[int] = range(5), arms: Iterable[str] = ("ticket", "reinit", "random")
) -> Config:
    return Config(
        model=Model(),
        prune=Prune(rounds=rounds),
        run=Run(seeds=tuple(seeds), arms=tuple(arms)),
        report=ReportConfig(tolerance=0.5),
    )


def plain(value: Any) -> Any:
    """asdict with lists for tuples, as YAML has it."""
    return json.loads(json.dumps(value))


def _accuracy(arm: str, density: float, rng: np.random.Generator) -> float:
    limit, slope = LIMIT[split_draw(arm)[0]]
    bump = 0.35 * exp(-((log(density) - log(0.15)) ** 2)) if arm == "ticket" else 0.0
    drop = exp(slope * (log(limit) - log(density)))
    return 97.4 + bump - min(drop, 60.0) + float(rng.normal(0, 0.12))


def _stop(arm: str, density: float, rng: np.random.Generator) -> int:
    faster = 0.55 if arm == "ticket" and density > 0.05 else 1.0 + 0.35 * max(0.0, -log(density) - 1)
    return int(min(STEPS, GRID * round(260 * faster * float(rng.normal(1, 0.08)) / GRID)))


def _curve(final: float, stop: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for step in range(0, STEPS + 1, GRID):
        grown = 1 - exp(-step / (stop / 4 + 1))
        loss = 2.3 * (1 - grown) + 0.12 + 0.0004 * max(0, step - stop)
        accuracy = 10 + (final - 10) * grown + float(rng.normal(0, 0.1))
        for split, shift, samples in (("train", 1.0, 1400), ("validation", 0.0, 190), ("test", -0.1, 360)):
            hit = min(1.0, max(0.0, (accuracy + shift) / 100))
            rows.append({"step": step, "split": split, "loss": loss, "accuracy": round(hit, 6), "samples": samples})
    return rows


def _at(curve: list[dict[str, Any]], step: int) -> dict[str, Any]:
    keys = ("loss", "accuracy", "samples")
    return {"step": step} | {row["split"]: {k: row[k] for k in keys} for row in curve if row["step"] == step}


def _result(
    seed: int, arm: str, number: int, curve: list[dict[str, Any]], stop: int, mask: Mask | None, thirds: bool
) -> dict[str, Any]:
    counts = mask.counts() if mask else {n: (int(np.prod(s)), int(np.prod(s))) for n, s in TENSORS.items()}
    kept, numel = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    stop_at = _at(curve, stop) | {"steps_trained": stop, "reached": stop < STEPS}
    work = 6 * numel * 60 * STEPS
    return {
        "schema": 1, "seed": seed, "arm": arm, "round": number, "attempt": 1,
        "density": kept / numel, "density_all": (kept + 410) / (numel + 410),
        "tensors": {n: {"kept": k, "numel": total, "kind": KINDS[n]} for n, (k, total) in counts.items()},
        "flags": [], "source": {"name": "theta_0", "weights_sha256": "0" * 64, "verdict": "exact"},
        "recipe": {"name": "continue", "weights": "k", "buffers": "k", "optimizer": "k", "schedule": "k", "data": "k"},
        "clock": {"start": 0, "end": STEPS, "steps": STEPS, "samples": 60 * STEPS, "steps_per_epoch": 20.0},
        "end": _at(curve, STEPS), "early_stop": None if thirds else stop_at,
        "thirds": [_at(curve, STEPS * i // 3) for i in (1, 2)] if thirds else None,
        "flops": {"dense": work, "sparse": round(work * kept / numel)},
        "seconds": {"train": 2.0, "evaluation": 0.4, "checkpoint": 0.1, "device": 2.5},
        "bytes": {"stored": 210_000}, "hashes": {"weights": "0" * 64, "mask": "0" * 64, "theta_k": "0" * 64},
        "zeros": {"pruned": numel - kept, "nonzero": 0}, "gradient": None,
    }  # fmt: skip


def _masks(theta: dict[str, torch.Tensor], rounds: int) -> list[Mask]:
    """Global pruning of |theta|, 20 % of the survivors a round, ranked with a little noise as training would."""
    generator = torch.Generator().manual_seed(7)
    scores = {n: theta[n].abs() + 0.05 * torch.rand(theta[n].shape, generator=generator) for n in TENSORS}
    ranked = torch.cat([s.reshape(-1) for s in scores.values()]).sort(descending=True).values
    cuts = [ranked[max(1, int(len(ranked) * 0.8**r)) - 1] for r in range(rounds + 1)]
    return [Mask({n: s >= cut for n, s in scores.items()}) for cut in cuts]


def _theta(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {n: torch.randn(s, generator=generator) * (2 / s[1]) ** 0.5 for n, s in TENSORS.items()}
    return weights | {n.replace("weight", "bias"): torch.zeros(s[0]) for n, s in TENSORS.items()}


def write_round(root: Path, seed: int, arm: str, number: int, mask: Mask | None, thirds: bool = False) -> None:
    """One finished round: result.json, mask and metrics.csv."""
    rng = np.random.default_rng([seed, number, sum(map(ord, arm))])
    density = mask.density if mask else 1.0
    stop = min(_stop(arm, density, rng), STEPS)
    curve = _curve(_accuracy(arm, density, rng), stop, rng)
    paths = RunPaths(root).round(seed, arm, number)
    lines = [",".join(str(row[k]) for k in ("step", "split", "loss", "accuracy", "samples")) for row in curve]
    paths.metrics(1).parent.mkdir(parents=True, exist_ok=True)  # plain writes: thousands of fsyncs take a while
    paths.metrics(1).write_text("\n".join(["step,split,loss,accuracy,samples", *lines]) + "\n")
    if mask:
        mask.save(paths.mask)
    paths.result.write_text(json.dumps(_result(seed, arm, number, curve, stop, mask, thirds)))


def write_run(root: Path, settings: Config | None = None, thirds: bool = False) -> Path:
    """A whole run folder: every planned round of every seed and arm; returns ``root``."""
    settings = settings or config()
    files.write_text(RunPaths(root).config, yaml.safe_dump(plain(asdict(settings)), sort_keys=False))
    for seed in settings.run.replicates:
        theta = _theta(seed)
        save_state(RunPaths(root).rewind(seed, 0), State(theta))
        masks = _masks(theta, settings.prune.rounds)
        for task in [task for task in tasks(settings, settings.prune.rounds) if task.seed == seed]:
            whole = not task.round or task.arm.startswith("transfer_dense")
            write_round(root, seed, task.arm, task.round, None if whole else masks[task.round], thirds)
        last = RunPaths(root).round(seed, "ticket", settings.prune.rounds)
        save_state(last.checkpoints / f"step_{STEPS:08d}.attempt_1", State(theta, step=STEPS).masked(masks[-1]).whole())
    return root


def write_sent(root: Path, **tracking: Any) -> Path:
    """A small run that W&B knows, of which it was sent one replicate."""
    made = config(rounds=2, seeds=range(2), arms=("ticket", "reinit"))
    write_run(root, replace(made, tracking=Tracking(**tracking)))
    files.write_json(RunPaths(root).tracking, {"experiment": "small-0a1b2c3d"})
    for path in (root / "seed_0").glob("*/round_*"):
        files.write_text(path / "attempts/000001/wandb/offline-run-1/run-1.wandb.synced", "")
    return root

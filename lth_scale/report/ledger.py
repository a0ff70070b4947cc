"""What a result cost: summed along the chain of rounds that had to be trained to get it."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

from lth_scale.arms import label
from lth_scale.report.reading import Key, Result, RunResults

COSTS = ("steps", "samples", "flops_dense", "flops_sparse", "device_seconds", "bytes")


def cost(result: Result) -> dict[str, float]:
    """What one round cost: steps, samples, FLOPs (forward and backward; dense, sparse), device-seconds, bytes."""
    return {
        "steps": float(result["clock"]["steps"]),
        "samples": float(result["clock"]["samples"]),
        "flops_dense": float(result["flops"]["dense"]),
        "flops_sparse": float(result["flops"]["sparse"]),
        "device_seconds": float(result["seconds"]["device"]),
        "bytes": float(result["bytes"]["stored"]),
    }


def chain(seed: int, arm: str, number: int) -> list[Key]:
    """The rounds behind a result: the ticket's 0..r; for a control its own and those that made its mask, 0..r-1.

    Of a ticket that was carried over, only its own: those that made it are another run's.
    """
    if label(arm):
        return [(seed, arm, number)]
    if arm == "ticket":
        return [(seed, "ticket", n) for n in range(number + 1)]
    return [(seed, "ticket", n) for n in range(number)] + [(seed, arm, number)]


def cumulative(run: RunResults, seed: int, arm: str, number: int) -> dict[str, float]:
    """Summed cost of the chain of one arm folder's round; nan where a link of the chain has no result yet."""
    links = [run.by_key.get(key) for key in chain(seed, arm, number)]
    if any(link is None for link in links):
        return dict.fromkeys(COSTS, nan)
    parts = [cost(link) for link in links if link is not None]
    return {name: sum(part[name] for part in parts) for name in COSTS}


def against_dense(run: RunResults, seed: int, total: Mapping[str, float]) -> dict[str, float]:
    """The same as multiples of the replicate's own dense round; nan where that is missing or cost nothing."""
    dense = run.by_key.get((seed, *run.dense))
    unit = cost(dense) if dense else dict.fromkeys(COSTS, nan)
    return {name: total[name] / unit[name] if unit[name] else nan for name in COSTS}

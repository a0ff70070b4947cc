"""theta_k by layer, split by the sparsest ticket's mask: what the histograms show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lth_scale.checkpoint import load_state
from lth_scale.duration import steps
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.report.reading import RunResults

SHOWN = 9
# Enough for a smooth histogram; a layer of a hundred million weights need not be sorted for one.
SAMPLE = 2_000_000


@dataclass(frozen=True)
class Layer:
    """One prunable tensor's theta_k: float32 vectors of the surviving and of the pruned weights."""

    name: str
    density: float
    kept: NDArray[np.float32]
    pruned: NDArray[np.float32]

    @property
    def limit(self) -> float:
        """The histogram's half width: the largest weight."""
        return float(np.abs(np.concatenate([self.kept, self.pruned, [0.0]])).max()) or 1.0


def rewind_step(run: RunResults) -> int:
    """k in steps; durations in epochs need one finished round to be known."""
    per_epoch = run.results[0]["clock"]["steps_per_epoch"] if run.results else 0
    return steps(run.config.rewind.at, round(per_epoch), "rewind.at")


def _layer(name: str, weights: torch.Tensor, keep: torch.Tensor) -> Layer:
    stride = max(1, weights.numel() // SAMPLE)
    flat, kept = weights.reshape(-1)[::stride].float(), keep.reshape(-1)[::stride]
    density = float(keep.sum()) / keep.numel()
    return Layer(name, density, flat[kept].numpy(), flat[~kept].numpy())


def spread(names: list[str], most: int = SHOWN) -> list[str]:
    """All names, or ``most`` of them evenly from first to last."""
    if len(names) <= most:
        return names
    return [names[round(i * (len(names) - 1) / (most - 1))] for i in range(most)]


def _files(run: RunResults) -> tuple[Path, Path] | None:
    step = rewind_step(run) if run.results else 0
    for seed in run.seeds:
        theta = RunPaths(run.root).rewind(seed, step)
        for number in sorted(run.rounds("ticket"), reverse=True):
            mask = RunPaths(run.root).round(seed, "ticket", number).mask
            if number and theta.is_dir() and mask.is_file():
                return theta, mask
    return None


def layers(run: RunResults) -> tuple[Layer, ...]:
    """The layers of the first replicate that still has theta_k and a ticket; empty when none has."""
    found = _files(run)
    if found is None:
        return ()
    weights: Mapping[str, torch.Tensor] = load_state(found[0]).weights
    mask = Mask.load(found[1])
    absent = [name for name in mask if name not in weights]
    if absent:
        raise UserError(
            f"{found[1]} does not fit {found[0]}: the latter has no {absent[0]}; they are of different runs"
        )
    return tuple(_layer(name, weights[name], mask[name]) for name in spread(list(mask)))

"""theta_k by layer, split by the sparsest ticket's mask: what the histograms show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from lth_scale.checkpoint import load_state
from lth_scale.duration import steps
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.report.reading import RunResults

T = TypeVar("T")
SHOWN = 9
# Enough for a smooth histogram; a layer of a hundred million weights need not be sorted for one.
SAMPLE = 2_000_000
PARTS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
BLOCK = rf"(?:^|\.)blocks\.(\d+)\.({'|'.join(map(re.escape, PARTS))})\.weight$"


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


def spread(names: list[T], most: int = SHOWN) -> list[T]:
    """All of them, or ``most`` of them evenly from first to last."""
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


def blocks(run: RunResults) -> pd.DataFrame:
    """What each block of a vision transformer keeps in the ticket's last round, mean of the replicates, in [0, 1].

    Index: the block's number; columns: those of PARTS that are pruned. Empty for other networks.
    """
    number = max(run.rounds("ticket"), default=0)
    found: dict[tuple[int, str], list[float]] = {}
    for result in (r for r in run.results if r["arm"] == "ticket" and r["round"] == number):
        for name, counts in result["tensors"].items():
            if named := re.search(BLOCK, name):
                found.setdefault((int(named[1]), named[2]), []).append(counts["kept"] / counts["numel"])
    frame = pd.Series({key: sum(shares) / len(shares) for key, shares in found.items()}, dtype=float)
    if frame.empty:
        return pd.DataFrame()
    wide = frame.unstack()
    return wide[[part for part in PARTS if part in wide]].rename_axis("block")

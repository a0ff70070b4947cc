"""A run folder as a Python object, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from lth_scale import data, models
from lth_scale.arms import split_draw
from lth_scale.checkpoint import State, latest, load_state
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.report import RunResults, read_run, summary
from lth_scale.report.layers import rewind_step


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none yet"


class OpenRun:
    """What a run folder holds; nothing is cached on disk and nothing is trained.

    Args:
        path: the run folder.
    """

    def __init__(self, path: Path) -> None:
        self.read: RunResults = read_run(path)
        self.paths = RunPaths(path)

    def __repr__(self) -> str:
        return f"OpenRun({str(self.paths.root)!r}, {len(self.results)} finished rounds)"

    @property
    def config(self) -> Config:
        """The run's whole config."""
        return self.read.config

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """The result of every finished round, as result.json has it, in (seed, arm, round) order."""
        return [dict(result) for result in self.read.results]

    def table(self) -> pd.DataFrame:
        """One row per (arm, round): density, accuracy, paired difference to dense, verdict, early stopping, cost."""
        return summary(self.read)

    def mask(self, seed: int, arm: str = "ticket", round: int = 1) -> Mask:
        """The mask that a round trained; all ones for round 0. Raises UserError naming the rounds that have one."""
        paths = self.paths.round(seed, arm, round)
        if round == 0 and (seed, "ticket", 0) in self.read.by_key:
            tensors = self.read.by_key[(seed, "ticket", 0)]["tensors"]
            return self._ones(seed, list(tensors))
        if not paths.mask.is_file():
            found = sorted(self.paths.root.glob("seed_*/*/round_*/mask.safetensors"))
            raise UserError(f"{paths.mask} does not exist; there are masks of {self._rounds(p.parent for p in found)}")
        return Mask.load(paths.mask)

    def _ones(self, seed: int, names: list[str]) -> Mask:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.theta(seed).weights.items()}
        return Mask.ones({name: shapes[name] for name in names})

    def theta(self, seed: int, step: int | None = None) -> State:
        """The dense pass at a stored step; the rewind point if None. Raises UserError naming those stored."""
        folder = self.paths.rewind(seed, rewind_step(self.read) if step is None else step)
        if not folder.is_dir():
            stored = sorted(self.paths.root.glob("seed_*/rewind/step_*"))
            names = _listed(f"seed {p.parts[-3][5:]} step {int(p.name[5:])}" for p in stored)
            raise UserError(f"{folder} does not exist; stored are: {names}")
        return load_state(folder)

    def model(self, seed: int, arm: str = "ticket", round: int = 0) -> nn.Module:
        """The network with the weights of the round's highest sound checkpoint, in eval mode on the CPU.

        Raises UserError naming the rounds that still have a checkpoint; one goes when the next round is done.
        """
        folder = self.paths.round(seed, arm, round).checkpoints
        found = latest(folder)
        if found is None:
            kept = sorted({p.parents[1] for p in self.paths.root.glob("seed_*/*/round_*/checkpoint/step_*")})
            raise UserError(f"{folder} holds no sound checkpoint; there are checkpoints of {self._rounds(kept)}")
        description = data.describe(self.config.data)
        network = models.build(self.config.model, description.shape, description.classes, seed)
        state = found[1].whole()
        network.load_state_dict({**state.weights, **state.buffers})
        return network.eval()

    @staticmethod
    def _rounds(folders: Iterable[Path]) -> str:
        """Round folders in words, the draws of a control as one arm."""
        keys = [(p.parts[-3][5:], p.parts[-2], int(p.name[6:])) for p in folders]
        seeds, arms, numbers = (sorted({key[i] for key in keys}) for i in range(3))
        if not keys:
            return "no round yet"
        if len(keys) <= 12:
            return _listed(f"seed {seed} {arm} round {number}" for seed, arm, number in keys)
        names = sorted({split_draw(str(arm))[0] for arm in arms})
        return f"seeds {_listed(map(str, seeds))}, arms {_listed(names)}, rounds {numbers[0]} to {numbers[-1]}"


def open_run(path: Path | str) -> OpenRun:
    """Open a run folder for reading. Raises UserError when it is not one, or naming a damaged file."""
    return OpenRun(Path(path))

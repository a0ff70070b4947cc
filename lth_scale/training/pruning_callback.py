"""PruningCallback: lottery tickets in anybody's Lightning training."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningModule
from torch.optim import Optimizer

from lth_scale import pruning, shards
from lth_scale.config import Prune, Rates
from lth_scale.errors import UserError, unknown
from lth_scale.masks import Mask
from lth_scale.pruning.shard import KINDS
from lth_scale.training import foreign, position
from lth_scale.training.callbacks import prove_start, require_zeros
from lth_scale.training.masking import Masking
from lth_scale.training.tickets import Tickets


def _bases() -> tuple[type, ...]:
    """Lightning is published under two names with a Callback each; an instance of both is taken by both Trainers."""
    other = importlib.util.find_spec("lightning") and importlib.import_module("lightning.pytorch")
    return (pl.Callback, other.Callback) if other else (pl.Callback,)


_Callback: Any = type("_Callback", _bases(), {})


class PruningCallback(_Callback):
    """Iterative magnitude pruning with late rewinding (Frankle & Carbin 2019, Frankle et al. 2020), a round a ``fit``.

    Round 0 trains the dense network, stores theta_k on the way and leaves the first mask. Every later round starts at k
    from theta_k times the mask (weights, buffers, optimizer state, learning rate and its schedule, the Trainer's epoch
    and step), trains to the end that the Trainer names, keeps pruned weights exactly zero and leaves the next mask.
    The files in ``folder`` say which round is next: the callback may be the same object or a new one, in any process.
    An interrupted round is trained again, or goes on with ``fit(ckpt_path=...)`` from a checkpoint of its own.

    Which samples a later round sees after k is the loader's affair: its sampler is told the epoch, and the batches of
    that epoch before k are left out. Attributes of the module other than parameters and buffers are not rewound.

    Args:
        folder: where masks, rewind point and results are kept; it must be seen by all ranks.
        rate: fraction of the surviving weights that a round removes, in (0, 1).
        rewind: the rewind point k: ``"0"``, ``"500it"`` (optimizer steps) or ``"2ep"`` (whole epochs).
        scope: ``global`` or ``layer``.
        rates: other rates by kind of tensor (``conv``, ``fc``, ``output``); 0 means never pruned.

    Attributes:
        round: the round that is trained, or that the next ``fit`` will train.
        mask: its mask once ``fit`` has begun; names as in the LightningModule, tied weights once.

    Raises:
        UserError: an argument is not valid, differs from what the folder was made with, or the module, optimizer or
            strategy cannot be handled; before anything is trained.
        RuntimeError: a round does not start from theta_k times its mask, or a pruned weight is not zero at the end.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        rate: float = 0.2,
        rewind: str = "0",
        scope: str = "global",
        rates: Mapping[str, float] | None = None,
    ) -> None:
        for kind in rates or {}:
            if kind not in KINDS:
                raise unknown("rates", kind, KINDS)
        self._prune = Prune(rate=rate, rates=Rates(**(rates or {})), scope=scope)
        self._rewind = foreign.RewindPoint.parse(rewind)
        self._settings = {"rate": rate, "rewind": str(self._rewind), "scope": scope, "rates": dict(rates or {})}
        self._tickets = Tickets(Path(folder))
        self.round, self.mask = self._tickets.current(), Mask({})
        self._begin()

    def _begin(self) -> None:
        """Nothing of an earlier fit is kept."""
        self._resumed: dict[str, Any] | None = None
        self._theta: str | None = None  # checksum of the stored rewind point
        self._masking: Masking | None = None
        self._entering = False  # at k, and not yet proved

    def setup(self, trainer: Any, pl_module: LightningModule, stage: str) -> None:
        """Lightning's hook, the first of a fit."""
        if stage == "fit":
            self._begin()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the round and what it stands on. The files keep the rest."""
        return {"round": self.round, "mask": self.mask.sha256(), "theta_k": self._theta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's hook, between ``setup`` and ``on_fit_start`` of a resumed fit."""
        self._resumed = dict(state_dict)

    def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Check everything that can be checked; in a later round, put the Trainer at k."""
        foreign.require_supported(trainer, pl_module)
        self._weights, self._others = foreign.prunable(pl_module)
        pruning.plan(self._weights, self._prune)  # refuses rates that do not fit
        self.round, recorded = trainer.strategy.broadcast((self._tickets.current(), self._tickets.settings()))
        self._tickets.require("the callback has", self._settings, recorded or self._settings, "choose another folder")
        self.mask = self._tickets.mask(self.round, {w.name: w.shape for w in self._weights})
        self._theta = self._tickets.require_theta() if self.round else (self._resumed or {}).get("theta_k")
        if self._resumed:
            now = {**self.state_dict(), "theta_k": self._theta and self._tickets.theta_sha256()}
            remedy = "resume from a checkpoint of this round, or without one"
            self._tickets.require(f"{trainer.ckpt_path} has", self._resumed, now, remedy)
        elif trainer.ckpt_path and self.round:
            raise UserError(f"{trainer.ckpt_path} is not of round {self.round}: it was saved without PruningCallback")
        elif trainer.global_step and not self.round:
            raise UserError("this Trainer has trained already; make a new one for every round")
        elif self.round:
            position.set_counters(trainer, self._tickets.place())
        if trainer.is_global_zero and recorded is None:
            self._tickets.settle(self._settings)

    def on_train_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Start from theta_k times the mask; or prove that a resumed round has its zeros."""
        self._shards = shards.ReplicatedShards(pl_module, trainer.optimizers)
        if self.round == 0:
            self._rewind.require_before_end(trainer)
            return
        self._masking = Masking(self._shards, self.mask)
        self._masking.install()
        self._entering = self._resumed is None
        if self._entering:
            shards.restore(self._shards, self._tickets.theta().masked(self.mask))
            position.restore(trainer, pl_module, self._tickets.place())
        else:
            require_zeros(self._masking)

    def on_train_epoch_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """In a later round's first epoch, go to the batch at k."""
        if self._entering:
            position.skip(trainer, self._tickets.place())

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """At k: store theta_k (round 0), or prove by a second reading that the round starts from it times the mask."""
        if self.round == 0 and self._theta is None and self._rewind.reached(trainer, batch_idx):
            place = position.read(trainer, pl_module)
            self._tickets.store_theta(shards.parts(self._shards), trainer.global_step, place)
            self._theta = self._tickets.theta_sha256()
        elif self._entering:
            prove_start(self._shards, self._tickets.theta().masked(self.mask))
            self._entering = False

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Lightning's hook inside the closure: after the backward pass, before clipping and the optimizer's state."""
        if self._masking:
            self._masking.gradients()

    def on_train_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Prove the zeros, then write the next mask and the round's done marker."""
        if self._theta is None:
            raise UserError(f"training ended at step {trainer.global_step}, before the rewind point {self._rewind}")
        if self._masking:
            require_zeros(self._masking)
        following = self._next_mask()
        if trainer.strategy.broadcast(following.sha256()) != following.sha256():
            raise RuntimeError("the ranks have different weights, and so would have different masks")
        if trainer.is_global_zero:
            self._tickets.finish(self.round, following, self._result(trainer, following))
        trainer.strategy.barrier()
        if self._masking:
            self._masking.remove()

    def _next_mask(self) -> Mask:
        tensors = {shard.name: shard.weights.float().flatten() for shard in self._shards.local()}
        candidates = [
            pruning.Shard(w.name, tensors[w.name], 0, w.shape, self.mask.range(w.name, 0, w.numel), w.kind)
            for w in self._weights
        ]
        goal = pruning.budgets(self._weights, self._prune, self.round + 1)
        masks = pruning.next_masks(candidates, self._prune, goal)
        return Mask({w.name: torch.from_numpy(masks[w.name][:]).reshape(w.shape) for w in self._weights})

    def _result(self, trainer: Any, following: Mask) -> dict[str, Any]:
        kinds, counts = {w.name: w.kind for w in self._weights}, self.mask.counts()
        return {
            "schema": 1,
            "round": self.round,
            "density": self.mask.density,
            "tensors": {n: {"kept": k, "numel": size, "kind": kinds[n]} for n, (k, size) in counts.items()},
            "unpruned": self._others,
            "clock": {"start": self._tickets.theta_step() if self.round else 0, "end": trainer.global_step},
            "hashes": {"mask": self.mask.sha256(), "theta_k": self._theta},
            "zeros": {"pruned": self.mask.numel - self.mask.kept, "nonzero": 0},
            "next": {"density": following.density, "kept": following.kept, "mask": following.sha256()},
        }

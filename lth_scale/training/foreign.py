"""A Trainer and a module that are not ours: what can be pruned there, and what is refused, by name, before training."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

from lth_scale import models
from lth_scale.errors import UserError
from lth_scale.shards import ReplicatedShards

STRATEGIES = {"SingleDeviceStrategy": "a single device", "DDPStrategy": "ddp"}
RANKABLE = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class RewindPoint:
    """When theta_k is stored.

    Args:
        number: k.
        unit: whole epochs (``ep``) or optimizer steps (``it``).
    """

    number: int
    unit: str

    @staticmethod
    def parse(text: str) -> RewindPoint:
        """``"0"``, ``"2ep"`` or ``"500it"``; raises UserError on anything else."""
        match = re.fullmatch(r"(\d+)(ep|it)|(0)", text.strip())
        if match is None:
            raise UserError(f"rewind={text!r} is not valid; write whole epochs as '2ep', steps as '500it', or '0'")
        return RewindPoint(int(match[1] or 0), match[2] or "it")

    def __str__(self) -> str:
        return f"{self.number}{self.unit}"

    def reached(self, trainer: Any, batch: int) -> bool:
        """Whether the next step (its first micro-batch is number ``batch`` of the epoch) is the first after k.

        Raises UserError when k has gone by.
        """
        here = trainer.current_epoch if self.unit == "ep" else trainer.global_step
        first = batch == 0 if self.unit == "ep" else batch % trainer.accumulate_grad_batches == 0
        if here > self.number or (here == self.number and not first):
            raise UserError(f"training is past the rewind point {self}, which is not stored; start round 0 anew")
        return bool(here == self.number)

    def require_before_end(self, trainer: Any) -> None:
        """Raises UserError if training ends at k or before."""
        steps, batches = self.number, trainer.num_training_batches
        if self.unit == "ep" and not math.isinf(batches):
            steps *= math.ceil(batches / trainer.accumulate_grad_batches)
        ends = [trainer.estimated_stepping_batches > steps or trainer.estimated_stepping_batches == -1]
        if self.unit == "ep":
            ends.append(trainer.max_epochs in (None, -1) or trainer.max_epochs > self.number)
        if not all(ends):
            raise UserError(
                f"rewind={self} is not before the end of training:"
                f" max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}"
            )


def require_supported(trainer: Any, module: nn.Module) -> None:
    """Raises UserError naming a strategy, an optimizer or a parameter that cannot be handled."""
    lightning = ("pytorch_lightning.", "lightning.pytorch.")
    strategy = next(c for c in type(trainer.strategy).__mro__ if c.__module__.startswith(lightning)).__name__
    if strategy not in STRATEGIES:
        raise UserError(f"strategy {strategy} cannot be handled; choose from: {', '.join(STRATEGIES.values())}")
    if trainer.fast_dev_run:
        raise UserError("fast_dev_run would leave a mask of an untrained network; switch it off, or the callback")
    ReplicatedShards(module, trainer.optimizers)  # refuses what it cannot hold
    known = {id(parameter) for parameter in module.parameters()}
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            raise UserError("optimizer ZeroRedundancyOptimizer cannot be handled: each rank has a part of its state")
        if any(id(parameter) not in known for group in optimizer.param_groups for parameter in group["params"]):
            raise UserError(f"optimizer {type(optimizer).__name__} trains parameters that are not the module's")


def prunable(module: nn.Module) -> tuple[list[models.Prunable], dict[str, str]]:
    """(Trainable weights that masks cover, name -> reason of all other parameters); names as in the LightningModule.

    Raises UserError if there is none, or naming one whose values magnitudes in float32 cannot rank.
    """
    parameters = dict(module.named_parameters())
    found = [p for p in models.prunable(module) if parameters[p.name].requires_grad]
    others = {other.name: other.reason for other in models.unprunable(module)}
    others |= {name: "frozen" for name, parameter in parameters.items() if not parameter.requires_grad}
    for weight in found:
        dtype = parameters[weight.name].dtype
        if dtype not in RANKABLE:
            raise UserError(f"parameter {weight.name} cannot be handled: {dtype} is not one of {RANKABLE}")
    if not found:
        kinds = "convolution, linear layer or attention"
        raise UserError(f"{type(module).__name__} has nothing to prune: no trainable weight of a {kinds}")
    return found, others

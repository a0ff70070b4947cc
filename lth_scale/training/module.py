"""The one LightningModule for classification, and its optimizers."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from torch.optim import Optimizer

from lth_scale import world
from lth_scale.config import Hardware, Train
from lth_scale.data import AnyDataset
from lth_scale.models import decay_groups
from lth_scale.shards import Shards
from lth_scale.streams import derive
from lth_scale.training import strategies
from lth_scale.training.evaluation import prepared
from lth_scale.training.mixing import Mixing
from lth_scale.training.schedule import Schedule

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}  # what autocast computes in; masters stay fp32


class Classifier(pl.LightningModule):
    """Cross-entropy training of a model; the step counter is the only thing its learning rate and its noise depend on.

    Args:
        model: maps images [N, C, H, W] to logits [N, classes].
        dataset: normalises what it serves as uint8.
        config: optimizer settings.
        schedule: learning rate by step of the dense clock.
        first: the step that training (re)starts at.
        shift: what to add to a step to find its place in the schedule; None stays at the schedule's last rate.
        last: T, where a schedule without shift stays.
        dropout: seed of the ``dropout`` stream.
        mixing: mixup and the like.
        hardware: precision, memory format of the images, and whether the model is compiled.

    Attributes:
        shards: what this rank holds of it, once training has begun.
    """

    shards: Shards

    def __init__(
        self,
        model: nn.Module,
        dataset: AnyDataset,
        config: Train,
        schedule: Schedule,
        first: int,
        shift: int | None,
        last: int,
        dropout: int,
        mixing: Mixing | None,
        hardware: Hardware,
    ) -> None:
        super().__init__()
        self.model = prepared_model(model, config, hardware)
        self._dataset, self._mixing, self._hardware = dataset, mixing, hardware
        self._layout = torch.channels_last if hardware.channels_last else torch.contiguous_format
        self._config, self._schedule = config, schedule
        self._first, self._shift, self._last = first, shift, last
        self._dropout = dropout
        self._noisy = any("drop" in type(part).__name__.lower() or _drops(part) for part in model.modules())

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning notes the running hook 40 times a step; torch's setter would make that a tenth of a small step."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def step(self) -> int:
        """Global batches consumed since the initialisation."""
        return self._first + self.trainer.global_step

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        """The mean loss of one micro-batch."""
        images, targets = prepared(batch[0], self._dataset).contiguous(memory_format=self._layout), batch[1]
        if self._mixing:
            images, targets = self._mixing(images, targets, self.step, self._part(index))
        if self._noisy:
            torch.manual_seed(derive(self._dropout, "dropout", self.step, self._part(index)))
        half = HALF.get(self._hardware.precision)
        with torch.autocast(self.device.type, half, enabled=half is not None):
            logits = self.model(images)
            return functional.cross_entropy(logits, targets, label_smoothing=self._config.label_smoothing)

    def configure_model(self) -> None:
        """Lightning's hook, before the optimizers are made: where the strategy cuts the model into shards."""
        if self._hardware.strategy == "fsdp2" and world.size() > 1:
            strategies.shard(self.model)
        if next(self.model.parameters()).is_meta:
            self.model.to_empty(device=self.trainer.strategy.root_device)

    def _part(self, index: int) -> int:
        """The micro-batch's place in the global batch, whoever computes it."""
        parts = self.trainer.accumulate_grad_batches
        return self.global_rank * parts + index % parts

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the learning rate of this step."""
        place = self._last - 1 if self._shift is None else self.step + self._shift
        for group in optimizer.param_groups:
            group["lr"] = self._schedule.at(place)

    def configure_optimizers(self) -> Optimizer:
        """The config's optimizer over one or two parameter groups."""
        return make_optimizer(self.model, self._config, self._fused())

    def _fused(self) -> bool:
        """Only on GPUs: on a CPU a fused step rounds the last few numbers of a tensor otherwise, so shards would show.

        With fp16 they undo the loss scale inside their step, after clipping; for FSDP2 torch has no fused SGD.
        """
        wanting = isinstance(self.model, FSDPModule) and self._config.optimizer in ("sgd", "nesterov")
        return strategies.on_gpu(self._hardware) and self._hardware.precision != "fp16" and not wanting

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Lightning's hook, after the gradients are masked; DeepSpeed clips by itself."""
        if self._config.clip and not strategies.clips(self._hardware):
            nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip)


def prepared_model(model: nn.Module, config: Train, hardware: Hardware) -> nn.Module:
    """The model as the hardware section wants it; parameter names stay."""
    if hardware.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if config.sync_batchnorm:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if hardware.compile:
        model.compile()  # in place: wrapping would change the names
    return model


def _drops(part: nn.Module) -> bool:
    return isinstance(part, nn.MultiheadAttention) and part.dropout > 0


def make_optimizer(model: nn.Module, config: Train, fused: bool = False) -> Optimizer:
    """SGD, Nesterov, Adam or AdamW; with ``train.decay=weights`` biases and norm layers do not decay."""
    parameters = dict(model.named_parameters())
    decayed, kept = decay_groups(model) if config.decay == "weights" else (list(parameters), [])
    named = [(decayed, config.weight_decay), (kept, 0.0)]
    groups: list[dict[str, Any]] = [
        {"params": [parameters[n] for n in names], "weight_decay": decay} for names, decay in named if names
    ]
    if config.optimizer in ("sgd", "nesterov"):
        nesterov = config.optimizer == "nesterov"
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=fused)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.lr, fused=fused)

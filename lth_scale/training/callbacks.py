"""What a round does beside training: prove its start, keep zeros, store rewind points, measure, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from lth_scale import checkpoint, files
from lth_scale.checkpoint import State
from lth_scale.data import AnyDataset, SplitName
from lth_scale.shards import capture, local_shards, restore
from lth_scale.training.evaluation import Curves, Measure, evaluate
from lth_scale.training.masking import Masking
from lth_scale.training.module import Classifier


class Stopwatch:
    """Seconds by kind, carried over interruptions. ``total`` contains the others."""

    def __init__(self, earlier: Mapping[str, float] | None = None) -> None:
        self._begun = time.perf_counter()
        self.seconds = {"total": 0.0, "evaluation": 0.0, "checkpoint": 0.0, **(earlier or {})}
        self._earlier = self.seconds["total"]

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count the time spent inside under ``kind``."""
        begun = time.perf_counter()
        yield
        self.seconds[kind] += time.perf_counter() - begun

    def read(self) -> dict[str, float]:
        """The seconds so far."""
        self.seconds["total"] = self._earlier + time.perf_counter() - self._begun
        return dict(self.seconds)


class Part:
    """One thing a round does beside training; a part overrides what it needs."""

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Before the first step."""

    def on_gradients(self) -> None:
        """After the backward pass of a global batch, before clipping and the optimizer's step."""

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """After the step that brought the model to ``step``."""

    def on_end(self, trainer: pl.Trainer) -> None:
        """After the last step."""


class Parts(pl.Callback):
    """All parts as one callback, in order: Lightning pays for every hook of every callback at every step.

    Args:
        parts: what is done, in this order.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Lightning's hook; the strategy is set up by now."""
        for part in self._parts:
            part.on_start(trainer, module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Optimizer) -> None:
        """Lightning's hook, inside the closure."""
        for part in self._parts:
            part.on_gradients()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Lightning's hook; a step ends with its last micro-batch."""
        if (index + 1) % trainer.accumulate_grad_batches == 0:
            for part in self._parts:
                part.on_step(trainer, module, module.step)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Lightning's hook."""
        for part in self._parts:
            part.on_end(trainer)


class Begin(Part):
    """Puts the start state into the live model and proves, bit for bit, that it is there.

    Args:
        load: loads the state that training must start from, mask applied, from disk anew.
    """

    def __init__(self, load: Callable[[], State]) -> None:
        self._load = load

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Restore, then compare with a second reading: a start that aliases or forgets something cannot pass."""
        restore(module.model, trainer.optimizers, self._load())
        prove_start(module.model, trainer.optimizers, self._load())


def prove_start(model: nn.Module, optimizers: Sequence[Optimizer], expected: State) -> None:
    """Refuse to train unless weights, buffers and optimizer state are bit-exactly the expected ones."""
    wrong = capture(model, optimizers, expected.step).differences(expected)
    if wrong:
        raise RuntimeError(
            f"the round does not start from its source state times its mask: {', '.join(wrong[:5])} differ"
        )


class Zeros(Part):
    """Keeps pruned weights at zero, and proves it at the end.

    Args:
        mask: the round's mask.
    """

    def __init__(self, mask: Mapping[str, torch.Tensor]) -> None:
        self._mask = mask

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Install the hooks."""
        self._masking = Masking(local_shards(module.model), self._mask)
        self._masking.install(trainer.optimizers)

    def on_gradients(self) -> None:
        """So that neither clipping nor the optimizer's state sees pruned gradients."""
        self._masking.gradients()

    def on_end(self, trainer: pl.Trainer) -> None:
        """The zero proof."""
        revived = self._masking.revived(trainer.optimizers)
        if revived:
            raise RuntimeError(f"pruned weights came back: {revived}")


class RewindPoints(Part):
    """Stores theta_k during the dense pass.

    Args:
        folders: step -> where its state goes.
        break_at: a step at which the optimizer state is dropped (after storing), or None.
    """

    def __init__(self, folders: Mapping[int, Path], break_at: int | None) -> None:
        self._folders, self._break_at = folders, break_at

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Step 0, or the step resumed at."""
        self.on_step(trainer, module, module.step)

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Store, once."""
        folder = self._folders.get(step)
        if folder is not None:
            average_buffers(module.model)
            if trainer.is_global_zero and not checkpoint.sound(folder):
                files.remove_folder(folder)  # a damaged one
                checkpoint.save_state(folder, capture(module.model, trainer.optimizers, step))
        if step == self._break_at:
            for optimizer in trainer.optimizers:
                optimizer.state.clear()


class Evaluation(Part):
    """Measures validation on the grid; test and train at each new minimum of validation loss, at marks and at the end.

    Without validation images there is nothing to choose by; then test is on the grid, to be looked at only.

    Args:
        dataset: the images.
        every: the grid, in steps of the dense clock.
        marks: further steps at which test is measured; the last of them is the end.
        curves: where the measures go.
        watch: times it.
    """

    def __init__(self, dataset: AnyDataset, every: int, marks: Sequence[int], curves: Curves, watch: Stopwatch) -> None:
        self._dataset, self._every, self._marks = dataset, every, marks
        self._curves, self._watch = curves, watch
        self._grid: SplitName = "validation" if dataset.length("validation") else "test"

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Measure if it is time."""
        if step % self._every and step not in self._marks:
            return
        with self._watch.timing("evaluation"):
            average_buffers(module.model)
            self._measure(module, step, self._grid)
            lowest = self._curves.minimum()
            if step in self._marks or (lowest is not None and lowest.step == step):
                for split in ("test", "train"):
                    if split != self._grid:
                        self._measure(module, step, split)

    def _measure(self, module: Classifier, step: int, split: SplitName) -> None:
        loss, accuracy, samples = evaluate(module.model, self._dataset, split, module.device)
        self._curves.add(Measure(step, split, loss, accuracy, samples))


class Checkpoints(Part):
    """Publishes a resumable state every so many steps, and the final one.

    Args:
        folder: the round's checkpoint folder.
        every: in steps.
        stop: the last step.
        attempt: the number in the published names.
        curves: made durable before each checkpoint.
        watch: times it; its seconds travel in the manifest.
        keep_optimizer: whether the final state keeps the optimizer's.
    """

    def __init__(
        self, folder: Path, every: int, stop: int, attempt: int, curves: Curves, watch: Stopwatch, keep_optimizer: bool
    ) -> None:
        self._folder, self._every, self._stop, self._attempt = folder, every, stop, attempt
        self._curves, self._watch = curves, watch
        self._keep_optimizer = keep_optimizer
        self.stored = 0
        self.final: State | None = None

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Save if it is time."""
        if step % self._every and step != self._stop:
            return
        with self._watch.timing("checkpoint"):
            average_buffers(module.model)
            state = capture(module.model, trainer.optimizers, step)
            if step == self._stop:
                self.final = state = state if self._keep_optimizer else replace(state, optimizer={})
            if trainer.is_global_zero:
                self._curves.sync()
                self.stored = checkpoint.publish(self._folder, state, self._attempt, {"seconds": self._watch.read()})


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """BatchNorm statistics: the mean over ranks, as each rank has seen other images."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.all_reduce(buffer)
            buffer /= dist.get_world_size()

"""What a round does beside training: prove its start, keep zeros, store rewind points, measure, checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn

from lth_scale import checkpoint, files, world
from lth_scale.checkpoint import Source
from lth_scale.data import AnyDataset, SplitName
from lth_scale.masks import Mask
from lth_scale.shards import Shards, differences, parts, restore
from lth_scale.training.averages import averaged, start_averages
from lth_scale.training.early_bird import End
from lth_scale.training.evaluation import Curves, Measure, evaluate
from lth_scale.training.masking import Masking
from lth_scale.training.module import Classifier
from lth_scale.training.parts import Part


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


class Begin(Part):
    """Puts the start state into the live model and proves, bit for bit, that it is there.

    Args:
        load: opens the state that training must start from, mask applied, on disk anew.
        scaler: of the loss, with fp16, where an interrupted round goes on.
    """

    def __init__(self, load: Callable[[], Source], scaler: Mapping[str, Any] | None = None) -> None:
        self._load, self._scaler = load, dict(scaler or {})

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Restore, then compare with a second reading: a start that aliases or forgets something cannot pass."""
        restore(module.shards, self._load())
        if self._scaler:
            trainer.precision_plugin.load_state_dict(self._scaler)
        prove_start(module.shards, self._load())


def prove_start(shards: Shards, expected: Source) -> None:
    """Refuse to train unless weights, buffers and optimizer state are bit-exactly the expected ones, on every rank."""
    wrong = sorted({key for found in world.gathered(differences(shards, expected)) for key in found})
    if wrong:
        raise RuntimeError(
            f"the round does not start from its source state times its mask: {', '.join(wrong[:5])} differ"
        )


class Zeros(Part):
    """Keeps pruned weights at zero, and proves it at the end.

    Args:
        mask: the round's mask.
    """

    def __init__(self, mask: Mask) -> None:
        self._mask = mask

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Install the hooks."""
        self._masking = Masking(module.shards, self._mask)
        self._masking.install()

    def on_gradients(self) -> None:
        """So that neither clipping nor the optimizer's state sees pruned gradients."""
        self._masking.gradients()

    def on_end(self, trainer: pl.Trainer) -> None:
        """The zero proof."""
        require_zeros(self._masking)


def require_zeros(masking: Masking) -> None:
    """Raises RuntimeError, on every rank, if a pruned weight or its optimizer state is not exactly zero on some."""
    revived = [found for found in world.gathered(masking.revived()) if found]
    if revived:
        raise RuntimeError(f"pruned weights, or their optimizer state, are not zero: {revived}")


class Statistics(Part):
    """BatchNorm's running statistics: the mean over ranks after every step, as each rank has seen other images.

    Averaging only where a state is looked at would make its bits depend on where that was.
    """

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Find them."""
        layers = [layer for layer in module.model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
        self._buffers = [buffer for buffer in buffers if buffer is not None]

    @torch.no_grad()
    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Average them, as one."""
        if world.size() == 1 or not self._buffers:
            return
        together = torch.cat(self._buffers)
        dist.all_reduce(together)
        together /= world.size()
        torch._foreach_copy_(self._buffers, together.split([len(buffer) for buffer in self._buffers]))


class RewindPoints(Part):
    """Stores theta_k during the dense pass.

    Args:
        folders: step -> where its state goes.
        break_at: a step at which the optimizer state is dropped (after storing), or None.
        owned: raises if this attempt may not write any more.
    """

    def __init__(self, folders: Mapping[int, Path], break_at: int | None, owned: Callable[[], None]) -> None:
        self._folders, self._break_at, self._owned = folders, break_at, owned

    def on_start(self, trainer: pl.Trainer, module: Classifier) -> None:
        """Step 0, or the step resumed at."""
        self.on_step(trainer, module, module.step)

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Store, once."""
        folder = self._folders.get(step)
        if folder is not None and not checkpoint.sound(folder):
            world.on_first(lambda: self._replace(folder))
            checkpoint.save(folder, parts(module.shards), step, guard=self._owned)
        if step == self._break_at:
            module.shards.allocate({})
            if module.shards.averages:
                start_averages(module.shards)

    def _replace(self, damaged: Path) -> None:
        self._owned()
        files.remove_folder(damaged)


class Evaluation(Part):
    """Measures validation on the grid; test and train at each new minimum of validation loss, at marks and at the end.

    Without validation images there is nothing to choose by; then test is on the grid, to be looked at only.

    Args:
        dataset: the images.
        every: the grid, in steps of the dense clock.
        marks: further steps at which test is measured; the last of them is the end.
        end: of the round.
        curves: where the measures go.
        watch: times it.
    """

    def __init__(
        self, dataset: AnyDataset, every: int, marks: Sequence[int], end: End, curves: Curves, watch: Stopwatch
    ) -> None:
        self._dataset, self._every, self._marks, self._end = dataset, every, marks, end
        self._curves, self._watch = curves, watch
        self._grid: SplitName = "validation" if dataset.length("validation") else "test"

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Measure if it is time."""
        marked = step in self._marks or step == self._end.step
        if step % self._every and not marked:
            return
        with self._watch.timing("evaluation"), averaged(module.shards):
            self._measure(module, step, self._grid)
            lowest = self._curves.minimum()
            if marked or (lowest is not None and lowest.step == step):
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
        end: of the round.
        attempt: the number in the published names.
        curves: made durable before each checkpoint.
        watch: times it; its seconds travel in the manifest.
        keep_optimizer: whether the final state keeps the optimizer's.
        widened: what a rank holds -> what of it is stored, in the original shapes.
        owned: raises if this attempt may not write any more.
        staging: carries states there while training goes on; None: training waits.
        told: called on the first rank with the measures that a published state makes final.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        end: End,
        attempt: int,
        curves: Curves,
        watch: Stopwatch,
        keep_optimizer: bool,
        widened: Callable[[Iterable[checkpoint.Part]], Iterable[checkpoint.Part]],
        owned: Callable[[], None],
        staging: checkpoint.Staging | None,
        told: Callable[[Sequence[Measure]], None],
    ) -> None:
        self._folder, self._every, self._end, self._attempt, self._owned = folder, every, end, attempt, owned
        self._curves, self._watch = curves, watch
        self._keep_optimizer, self._widened, self._staging, self._told = keep_optimizer, widened, staging, told
        self.finished: Path | None = None
        self._last: Path | None = None
        self._before = -1

    def on_step(self, trainer: pl.Trainer, module: Classifier, step: int) -> None:
        """Save if it is time."""
        if step == self._end.step:
            self.save(module, step)
            self.finished = self._last
        elif step % self._every == 0:
            self._publish(module, step)

    def save(self, module: Classifier, step: int) -> None:
        """Publish the state at this step; it is in place when this returns."""
        self._publish(module, step)
        if self._staging:
            with self._watch.timing("checkpoint"):
                self._staging.settle()
        self._tell(step)

    def _publish(self, module: Classifier, step: int) -> None:
        with self._watch.timing("checkpoint"):
            self._curves.sync()
            state = self._widened(parts(module.shards, step != self._end.step or self._keep_optimizer))
            scaler = module.trainer.precision_plugin.state_dict()
            extra: dict[str, Any] = {"seconds": self._watch.read(), "scaler": scaler}
            if self._end.early:
                extra["early_end"] = self._end.distance
            publish = self._staging.publish if self._staging else checkpoint.publish
            self._last = publish(self._folder, state, step, self._attempt, extra, self._owned)
        self._tell(self._before if self._staging else step)  # staged, the one before is in place by now
        self._before = step

    def _tell(self, step: int) -> None:
        if world.first():
            self._told([row for row in self._curves.rows if row.step <= step])

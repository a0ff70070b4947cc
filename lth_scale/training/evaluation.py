"""Validation on a fixed grid; test and train where they are reported. No choice ever reads test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from lth_scale import files, world
from lth_scale.data import AnyDataset, SplitName, evaluation_batches
from lth_scale.errors import UserError

TRAIN_SAMPLES = 5000  # train figures are measured on this many images, evenly spread over the split
Batch = tuple[torch.Tensor, torch.Tensor]
HEADER = "step,split,loss,accuracy,samples"


@dataclass(frozen=True)
class Measure:
    """One row of the curves: mean cross-entropy in nats, accuracy in [0, 1], over ``samples`` images."""

    step: int
    split: str
    loss: float
    accuracy: float
    samples: int

    @property
    def line(self) -> str:
        """Its line in metrics.csv; floats keep all their bits."""
        return f"{self.step},{self.split},{self.loss!r},{self.accuracy!r},{self.samples}"

    @staticmethod
    def parse(line: str) -> Measure:
        """The inverse of ``line``."""
        step, split, loss, accuracy, samples = line.split(",")
        return Measure(int(step), split, float(loss), float(accuracy), int(samples))


Sums = tuple[float, int, int]
"""Summed loss, hits and samples of a batch."""


@torch.no_grad()
def evaluate(model: nn.Module, dataset: AnyDataset, split: SplitName, device: torch.device) -> tuple[float, float, int]:
    """(mean loss, accuracy, samples): every image once, hits as integers, losses in float64.

    The same bits at any number of ranks: the batches are the same, and are summed in the same order.
    """
    samples = TRAIN_SAMPLES if split == "train" else None
    batches = evaluation_batches(dataset, split, samples, world.rank(), world.size())
    training = model.training
    model.eval()
    mine = [_sums(model, batch, dataset, device) for batch in _in_step(batches, dataset)]
    model.train(training)
    dealt = itertools.zip_longest(*world.gathered([sums for sums in mine if sums[2]]))
    every = [sums for turn in dealt for sums in turn if sums is not None]
    count = sum(samples for _, _, samples in every)
    return math.fsum(loss for loss, _, _ in every) / count, sum(hits for _, hits, _ in every) / count, count


def _in_step(batches: Iterable[Batch], dataset: AnyDataset) -> Iterator[Batch]:
    """As many batches on every rank, since a sharded model computes together: empty ones fill up."""
    blank = torch.zeros(2, *dataset.shape), torch.empty(0, dtype=torch.int64)  # torch compiles anew for one image
    mine = iter(batches)
    while any(world.gathered((batch := next(mine, None)) is not None)):
        yield blank if batch is None else batch


def _sums(model: nn.Module, batch: Batch, dataset: AnyDataset, device: torch.device) -> Sums:
    target = batch[1].to(device)
    logits = model(prepared(batch[0].to(device), dataset)).float()[: len(target)]
    loss = functional.cross_entropy(logits, target, reduction="none").double().sum()
    return float(loss), int((logits.argmax(1) == target).sum()), len(target)


def prepared(images: torch.Tensor, dataset: AnyDataset) -> torch.Tensor:
    """Streamed images arrive as uint8, a quarter of the bytes, and are normalised on the device."""
    return dataset.normalise(images) if images.dtype == torch.uint8 else images


class Curves:
    """The measures of one attempt, in memory and in its metrics.csv.

    Args:
        path: the attempt's metrics.csv, or None on ranks that do not write.
        earlier: rows of the attempt it goes on from, already cut at the resumed step.
    """

    def __init__(self, path: Path | None, earlier: Iterable[Measure] = ()) -> None:
        self.rows = list(earlier)
        self._path = path
        if path is not None:
            files.write_text(path, "\n".join([HEADER, *(row.line for row in self.rows)]) + "\n")

    def add(self, row: Measure) -> None:
        """Append one measure."""
        self.rows.append(row)
        if self._path is not None:
            files.append_line(self._path, row.line)

    def sync(self) -> None:
        """Make what was appended survive a crash."""
        if self._path is not None:
            files.sync_file(self._path)

    def at(self, step: int) -> dict[str, Measure]:
        """The measures of one step, by split."""
        return {row.split: row for row in self.rows if row.step == step}

    def minimum(self) -> Measure | None:
        """The first minimum of validation loss so far; None before any finite one."""
        finite = [row for row in self.rows if row.split == "validation" and math.isfinite(row.loss)]
        return min(finite, key=lambda row: row.loss, default=None)


def read_curves(path: Path, until: int) -> list[Measure]:
    """The rows of a metrics.csv up to a step, without a torn last line. Raises UserError when missing or damaged."""
    try:
        text = path.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()[1:]
        return [row for line in lines if (row := Measure.parse(line)).step <= until]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); remove the round's folder to train it anew") from None

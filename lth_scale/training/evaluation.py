"""Validation on a fixed grid; test and train where they are reported. No choice ever reads test."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from lth_scale import files
from lth_scale.data import AnyDataset, SplitName, evaluation_batches
from lth_scale.errors import UserError

TRAIN_SAMPLES = 5000  # train figures are measured on this many images, evenly spread over the split
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


@torch.no_grad()
def evaluate(model: nn.Module, dataset: AnyDataset, split: SplitName, device: torch.device) -> tuple[float, float, int]:
    """(mean loss, accuracy, samples): every image once at any number of ranks, hits as integers, losses in float64."""
    samples = TRAIN_SAMPLES if split == "train" else None
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    totals = torch.zeros(3, dtype=torch.float64)
    training = model.training
    model.eval()
    for x, y in evaluation_batches(dataset, split, samples, rank, world):
        logits, target = model(prepared(x.to(device), dataset)).float(), y.to(device)
        loss = functional.cross_entropy(logits, target, reduction="none").double().sum()
        totals += torch.stack([loss, (logits.argmax(1) == target).sum().double(), loss.new_tensor(float(len(y)))]).cpu()
    model.train(training)
    if world > 1:
        dist.all_reduce(totals)
    loss_sum, hits, count = totals.tolist()
    return loss_sum / count, hits / count, int(count)


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

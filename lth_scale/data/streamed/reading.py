"""What a loader's process does: micro-batches of decoded images, with bad samples replaced or reported."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from threading import Thread
from typing import Any, NamedTuple, Protocol

import torch
from isal.isal_zlib import crc32
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lth_scale.data.dataset import SplitName
from lth_scale.data.streamed.decode import Damaged, Look, eval_image, train_image
from lth_scale.data.streamed.faults import BadSample, BadShard, Fault
from lth_scale.data.streamed.samples import Column, Samples
from lth_scale.data.streamed.shards import Shards
from lth_scale.errors import UserError

PREFETCH = 2
"""Micro-batches that each worker keeps ready."""


class View(Protocol):
    """How an encoded image becomes uint8 [3, crop, crop], channels last; must be picklable, and pure."""

    @property
    def crop(self) -> int:
        """The side in pixels."""
        ...

    def __call__(self, data: bytes, sound: bool, epoch: int, sample: int, out: Tensor) -> None:
        """Put the image of that sample, in an epoch, where it belongs; raises Damaged if it cannot be read."""
        ...


@dataclass(frozen=True)
class TrainView:
    """As training sees them: drawn from (seed, noise, epoch, sample)."""

    look: Look
    seed: int
    noise: int

    @property
    def crop(self) -> int:
        """The side in pixels."""
        return self.look.crop

    def __call__(self, data: bytes, sound: bool, epoch: int, sample: int, out: Tensor) -> None:
        """A random view."""
        train_image(data, self.look, self.seed, self.noise, epoch, sample, sound, out)


@dataclass(frozen=True)
class EvalView:
    """As evaluation sees them: always the same."""

    crop: int

    def __call__(self, data: bytes, sound: bool, epoch: int, sample: int, out: Tensor) -> None:
        """The centre."""
        out.copy_(eval_image(data, self.crop))


class Key(NamedTuple):
    """One micro-batch: its epoch, and the numbers of its samples in the split."""

    epoch: int
    samples: Column


class Served(NamedTuple):
    """A micro-batch as a worker hands it over; errors travel as values, since PyTorch would wrap what is raised.

    Args:
        images: uint8 [B, 3, crop, crop], channels last in memory.
        labels: int64 [B], fewer if it ended at a bad sample.
        faults: every sample that was found bad on the way.
        error: what the user must mend before anything can be served; empty if nothing.
    """

    images: Tensor
    labels: Tensor
    faults: list[Fault]
    error: str


class Reader(Dataset[Served]):
    """Random access to the micro-batches of one split.

    Args:
        shards: of all splits.
        samples: the split's, with the numbers that ``shards`` gives its shards.
        rows: int64 [N], each sample's row in the index's split: its identity in augmentation and in messages.
        origin: that split of the index.
        classes: labels are below it.
        view: how an image is seen.
        replace: a bad sample is replaced by the next one that can be read; else the micro-batch ends at it.
    """

    def __init__(
        self,
        shards: Shards,
        samples: Samples,
        rows: Column,
        origin: SplitName,
        classes: int,
        view: View,
        replace: bool,
    ) -> None:
        self.shards, self.samples, self.rows, self.origin = shards, samples, rows, origin
        self.classes, self.view, self.replace = classes, view, replace
        self._bad: dict[int, str] = {}

    def __getitem__(self, key: Key) -> Served:
        wanted: list[int] = key.samples.tolist()
        shape = (len(wanted), 3, self.view.crop, self.view.crop)
        images = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)  # as decoders lay them out
        labels: list[int] = []
        faults: list[Fault] = []
        error = ""
        for sample in wanted:
            self.shards.expect(*self._place(sample))
        try:
            for sample, out in zip(wanted, images, strict=True):
                label = self._fill(out, sample, key.epoch, faults)
                if label is None:
                    break
                labels.append(label)
        except UserError as problem:
            error = str(problem)
        return Served(images, torch.tensor(labels, dtype=torch.int64), faults, error)

    def _place(self, sample: int) -> tuple[int, int, int]:
        table = self.samples
        return int(table.shard[sample]), int(table.offset[sample]), int(table.size[sample])

    def _fill(self, out: Tensor, sample: int, epoch: int, faults: list[Fault]) -> int | None:
        """Put the sample there, or the first one after it, cyclically, that can be read; its label."""
        at = sample
        for _ in range(len(self.samples)):
            try:
                # The draws are those of the place in the order, so that a stand-in is not seen twice alike.
                self._look(at, epoch, int(self.rows[sample]), out)
                return int(self.samples.label[at])
            except (BadSample, BadShard) as error:
                faults.append(self._fault(at, str(error)))
                if not self.replace:
                    return None
                lost = isinstance(error, BadShard)
                at = self._after_shard(at) if lost else (at + 1) % len(self.samples)
        raise UserError(f"no sample of {self.origin} can be read; the last: {faults[-1]}")

    def _look(self, at: int, epoch: int, sample: int, out: Tensor) -> None:
        if at in self._bad:
            raise BadSample(self._bad[at])
        try:
            self.view(self._bytes(at), bool(self.samples.sound[at]), epoch, sample, out)
        except (BadSample, Damaged) as error:
            self._bad[at] = f"the image is damaged ({error})" if isinstance(error, Damaged) else str(error)
            raise BadSample(self._bad[at]) from None

    def _bytes(self, at: int) -> bytes:
        label = int(self.samples.label[at])
        if not 0 <= label < self.classes:
            raise BadSample(f"the label {label} is not in 0..{self.classes - 1}")
        data = self.shards.read(*self._place(at))
        if crc32(data) != self.samples.crc[at]:
            raise BadSample("its bytes differ from their checksum")
        return data

    def _after_shard(self, at: int) -> int:
        """The first sample of the next shard; the samples of one shard follow one another."""
        shard = self.samples.shard
        later = (shard[at:] != shard[at]).argmax()
        return at + int(later) if later else 0

    def _fault(self, at: int, reason: str) -> Fault:
        number, offset, _ = self._place(at)
        return Fault(self.shards.where(number), self.origin, int(self.rows[at]), offset, reason)


def _same(served: Any) -> Any:
    return served


def _die_with_the_trainer(worker: int) -> None:
    """End this worker when the process that it serves ends, however that happens.

    Its parent is the fork server, which lives as long as any worker does, so PyTorch's own watch never sees a death.
    """
    trainer = parent_process()
    assert trainer

    def watch() -> None:
        trainer.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def _context() -> BaseContext:
    """Workers start from a fresh process: a fork of this one would inherit locks that its other threads hold."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "torchvision.transforms.v2"])  # imported once, not by each worker
    return context


def serve(reader: Reader, keys: Iterable[Key], workers: int) -> Iterator[Served]:
    """The micro-batches of the keys, in their order, decoded ahead by ``workers`` processes of one thread each."""
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_die_with_the_trainer,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=_context() if workers else None,
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),  # a loader draws a seed, which must not come from the global one
    )
    with _deaf():
        return iter(loader)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started inside never see the signals that ask a run to stop: ranks finish their step first.

    The resource tracker of multiprocessing unblocks two of them as it starts, so it starts before.
    """
    signals = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)

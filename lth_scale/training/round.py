"""One round: a fresh Trainer, a proven start, masked training, and what came out of it."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytorch_lightning as pl
from torch import nn

from lth_scale import checkpoint, resources, world
from lth_scale.arms import Start
from lth_scale.checkpoint import Source, State, Stored
from lth_scale.config import Data, Hardware, Train
from lth_scale.data import AnyDataset, Training, accumulation, training_batches
from lth_scale.duration import steps
from lth_scale.masks import Mask
from lth_scale.models.coupling import Group
from lth_scale.paths import RoundPaths
from lth_scale.training import callbacks as parts
from lth_scale.training import environment, stopping, strategies
from lth_scale.training.averages import Average
from lth_scale.training.compact import Compact
from lth_scale.training.early_bird import EarlyBird, End, Ended, Leave
from lth_scale.training.evaluation import Curves, Measure, read_curves
from lth_scale.training.mixing import Mixing
from lth_scale.training.module import Classifier
from lth_scale.training.parts import Parts
from lth_scale.training.schedule import Schedule
from lth_scale.training.stopping import Stop


@dataclass(frozen=True)
class Job:
    """Everything one round needs.

    Args:
        build: makes a network of the run's architecture; its values are replaced by the start state's.
        dataset: in memory or streamed.
        data: as in the config.
        train: as in the config, micro-batch fixed.
        hardware: as in the config.
        start: state, mask and clock.
        reload: opens the start state on disk anew, mask applied; what the live model is proved against.
        masked: whether the mask is at work (round 0 has none).
        streams: seeds of ``order``, ``augment`` and ``dropout``.
        paths: the round's files.
        attempt: this attempt's number.
        told: called on the first rank with the measures that will not change any more, whenever there are new ones.
        owned: raises UserError when another attempt has taken the round over; asked before anything is published.
        rewind_points: step -> folder, of the dense pass.
        break_at: where the dense pass drops its optimizer state.
        keep_optimizer: whether the final state keeps its optimizer's, which only some recipes read.
        drawn: state -> the mask that it would leave, with Early-Bird.
        early_bird: the distance below which masks agree.
        groups: the model's coupled units, of which dead ones are left out of training; none trains all.
    """

    build: Callable[[], nn.Module]
    dataset: AnyDataset
    data: Data
    train: Train
    hardware: Hardware
    start: Start
    reload: Callable[[], Source]
    masked: bool
    streams: Mapping[str, int]
    paths: RoundPaths
    attempt: int
    told: Callable[[Sequence[Measure]], None]
    owned: Callable[[], None]
    rewind_points: Mapping[int, Path]
    break_at: int | None
    keep_optimizer: bool
    drawn: Callable[[State], Mask] | None
    early_bird: float
    groups: Sequence[Group]

    @cached_property
    def compact(self) -> Compact:
        """The round's view of network, mask and states."""
        return Compact(self.groups, self.start.mask, self.start.state.masked(self.start.mask))

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        return self.dataset.length("train") // self.train.batch_size

    @property
    def schedule(self) -> Schedule:
        """The dense pass's."""
        return Schedule(self.train, self.start.clock.stop, self.steps_per_epoch)

    @property
    def marks(self) -> list[int]:
        """Steps at which test is measured: the end, and the thirds where the schedule drops."""
        return self.start.clock.marks(self.train.drops)


@dataclass(frozen=True)
class Trained:
    """What a round leaves: its final state is on disk, and its end may have come early."""

    final: Stored
    end: End
    curves: Curves
    seconds: dict[str, float]


def train_round(job: Job) -> Trained:
    """Train from the start state, or go on from the round's last good checkpoint, to the end. All ranks call it."""
    begun = _begun(job)
    where, step = (begun[0], begun[1].step) if begun else (None, job.start.state.step)
    watch = parts.Stopwatch(begun[1].extra["seconds"] if begun else None)
    curves = _curves(job, where, step, writes=world.first())
    end = _end(job, begun[1] if begun else None)
    if begun and step == end.step:
        world.on_first(lambda: checkpoint.remove_older(begun[0]))
        if world.first():
            job.told(curves.rows)
        return Trained(begun[1], end, curves, watch.seconds)
    saver = _checkpoints(job, end, curves, watch)
    with _collected():
        _fit(job, _callback(job, where, end, curves, watch, saver), step)
    if saver.finished is None:
        raise KeyboardInterrupt  # Lightning ends a fit early only for a signal, and quietly
    return Trained(Stored.open(saver.finished), end, curves, watch.read())


def _fit(job: Job, callback: pl.Callback, step: int) -> None:
    trainer = _trainer(job, callback, job.start.clock.stop - step)
    stopping.take_over(trainer)
    with suppress(Ended):
        trainer.fit(_module(job, step), train_dataloaders=_batches(job, step))


@contextmanager
def _collected() -> Iterator[None]:
    """Free what is made inside and refers to itself, as a Trainer, its strategy and its model do.

    Without a look at what was there before: with all that is imported, that takes a quarter of a second. Whoever has
    set things aside on purpose keeps them there.
    """
    aside = gc.get_freeze_count() > 0
    if not aside:
        gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if not aside:
            gc.unfreeze()


def _end(job: Job, begun: Stored | None) -> End:
    """Where the round ends, as far as is known: what goes on may have ended early before it was interrupted."""
    planned = job.start.clock.stop
    if begun and "early_end" in begun.extra:
        return End(begun.step, planned, begun.extra["early_end"])
    return End(planned, planned)


def _begun(job: Job) -> tuple[Path, Stored] | None:
    """The checkpoint to go on from; none where a rewind point was lost that lies before it."""
    found = checkpoint.latest(job.paths.checkpoints)
    if found and all(checkpoint.sound(path) for step, path in job.rewind_points.items() if step <= found[1].step):
        return found
    return None


def _curves(job: Job, where: Path | None, step: int, writes: bool) -> Curves:
    earlier = []
    if where is not None:
        earlier = read_curves(job.paths.metrics(int(where.name.rpartition("_")[2])), step)
    return Curves(job.paths.metrics(job.attempt) if writes else None, earlier)


def _checkpoints(job: Job, end: End, curves: Curves, watch: parts.Stopwatch) -> parts.Checkpoints:
    every = steps(job.train.checkpoint_every, job.steps_per_epoch, "train.checkpoint_every")
    folder, hardware = job.paths.checkpoints, job.hardware
    scratch = resources.on_this_machine("hardware.scratch", hardware.scratch)
    staging = checkpoint.Staging(scratch, hardware.timeout) if scratch else None
    keep, whole = job.keep_optimizer, job.compact.widened
    return parts.Checkpoints(folder, every, end, job.attempt, curves, watch, keep, whole, job.owned, staging, job.told)


def _callback(
    job: Job, where: Path | None, end: End, curves: Curves, watch: parts.Stopwatch, saver: parts.Checkpoints
) -> pl.Callback:
    every = steps(job.train.eval_every, job.steps_per_epoch, "train.eval_every")
    scaler = Stored.open(where).extra.get("scaler") if where else None
    begin = parts.Begin(lambda: job.compact.narrow(Stored.open(where) if where else job.reload()), scaler)
    zeros = [parts.Zeros(job.compact.mask)] if job.masked else []
    average = [Average(job.train.ema)] if job.train.ema else []
    points = parts.RewindPoints(job.rewind_points, job.break_at, job.owned)
    evaluation = parts.Evaluation(job.dataset, every, job.marks, end, curves, watch)
    early = [_early_bird(job, job.drawn, end)] if job.drawn else []
    before = [begin, *zeros, parts.Statistics(), *average, points, *early]
    return Parts([*before, evaluation, Stop(saver.save), saver, Leave(end)])


def _early_bird(job: Job, drawn: Callable[[State], Mask], end: End) -> EarlyBird:
    first = max(job.rewind_points)
    return EarlyBird(drawn, job.early_bird, job.steps_per_epoch, first, job.paths.early_bird, end)


def _module(job: Job, first: int) -> Classifier:
    clock, streams, train = job.start.clock, job.streams, job.train
    shift = None if clock.schedule is None else clock.schedule - clock.start
    mixed = train.mixup or train.cutmix
    mixing = Mixing(train, job.dataset.classes, streams["augment"], clock.noise) if mixed else None
    network, dropout = job.compact.network(job.build()), streams["dropout"]
    return Classifier(
        network, job.dataset, train, job.schedule, first, shift, clock.stop, dropout, mixing, job.hardware
    )


def _batches(job: Job, first: int) -> Training:
    return training_batches(
        job.dataset,
        job.data,
        job.train,
        start=first,
        stop=job.start.clock.stop,
        order=job.streams["order"],
        augment=job.streams["augment"],
        noise=job.start.clock.noise,
        rank=world.rank(),
        world=world.size(),
    )


def _trainer(job: Job, callback: pl.Callback, length: int) -> pl.Trainer:
    hardware = job.hardware
    devices = hardware.devices * hardware.nodes
    for package in ("pytorch_lightning", "lightning_fabric"):  # advice on loaders, loggers and launchers
        warnings.filterwarnings("ignore", module=package)
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a banner a round
    return pl.Trainer(
        accelerator=hardware.accelerator,
        strategy=strategies.make(hardware, job.train, devices) if devices > 1 else "auto",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        plugins=[environment.cluster(), *strategies.plugins(hardware)],
        deterministic=hardware.deterministic,
        max_steps=length,
        max_epochs=1,
        accumulate_grad_batches=accumulation(job.train.batch_size, job.train.micro_batch, devices),
        callbacks=[callback],
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        default_root_dir=job.paths.folder,  # never used; unset, every Trainer asks for the current folder
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

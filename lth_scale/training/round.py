"""One round: a fresh Trainer, a proven start, masked training, and what came out of it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.utilities import rank_zero
from torch import nn

from lth_scale import checkpoint
from lth_scale.arms import Start
from lth_scale.checkpoint import State
from lth_scale.config import Data, Hardware, Train
from lth_scale.data import AnyDataset, Training, accumulation, training_batches
from lth_scale.duration import steps
from lth_scale.paths import RoundPaths
from lth_scale.training import callbacks as parts
from lth_scale.training.evaluation import Curves, read_curves
from lth_scale.training.mixing import Mixing
from lth_scale.training.module import Classifier
from lth_scale.training.schedule import Schedule


@dataclass(frozen=True)
class Job:
    """Everything one round needs.

    Args:
        model: of the run's architecture; its values are replaced by the start state's.
        dataset: in memory or streamed.
        data: as in the config.
        train: as in the config, micro-batch fixed.
        hardware: as in the config.
        start: state, mask and clock.
        reload: reads the start state from disk anew, mask applied; what the live model is proved against.
        masked: whether the mask is at work (round 0 has none).
        streams: seeds of ``order``, ``augment`` and ``dropout``.
        paths: the round's files.
        attempt: this attempt's number.
        rewind_points: step -> folder, of the dense pass.
        break_at: where the dense pass drops its optimizer state.
        keep_optimizer: whether the final state keeps its optimizer's, which only some recipes read.
    """

    model: nn.Module
    dataset: AnyDataset
    data: Data
    train: Train
    hardware: Hardware
    start: Start
    reload: Callable[[], State]
    masked: bool
    streams: Mapping[str, int]
    paths: RoundPaths
    attempt: int
    rewind_points: Mapping[int, Path]
    break_at: int | None
    keep_optimizer: bool

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
    """What a round leaves in memory; its final state is on disk already."""

    state: State
    curves: Curves
    seconds: dict[str, float]
    stored: int


def train_round(job: Job) -> Trained:
    """Train from the start state, or go on from the round's last good checkpoint, to the end."""
    begun = _begun(job)
    where, state = begun if begun else (None, job.start.state.masked(job.start.mask))
    watch = parts.Stopwatch(checkpoint.load_manifest(where)["extra"]["seconds"] if where else None)
    world = job.hardware.devices * job.hardware.nodes
    curves = _curves(job, where, state.step, writes=first_rank())
    if state.step == job.start.clock.stop:
        return Trained(state, curves, watch.seconds, _size(where))
    saver = _checkpoints(job, curves, watch)
    trainer = _trainer(job, _callback(job, where, curves, watch, saver), job.start.clock.stop - state.step)
    trainer.fit(_module(job, state.step), train_dataloaders=_batches(job, state.step, world))
    if saver.final is None:
        raise KeyboardInterrupt  # Lightning ends a fit early only for a signal, and quietly
    return Trained(saver.final, curves, watch.read(), saver.stored)


def _begun(job: Job) -> tuple[Path, State] | None:
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


def _checkpoints(job: Job, curves: Curves, watch: parts.Stopwatch) -> parts.Checkpoints:
    every = steps(job.train.checkpoint_every, job.steps_per_epoch, "train.checkpoint_every")
    folder, stop = job.paths.checkpoints, job.start.clock.stop
    return parts.Checkpoints(folder, every, stop, job.attempt, curves, watch, job.keep_optimizer)


def _callback(
    job: Job, where: Path | None, curves: Curves, watch: parts.Stopwatch, saver: parts.Checkpoints
) -> pl.Callback:
    every = steps(job.train.eval_every, job.steps_per_epoch, "train.eval_every")
    begin = parts.Begin(lambda: checkpoint.load_state(where) if where else job.reload())
    zeros = [parts.Zeros(job.start.mask)] if job.masked else []
    points = parts.RewindPoints(job.rewind_points, job.break_at)
    evaluation = parts.Evaluation(job.dataset, every, job.marks, curves, watch)
    return parts.Parts([begin, *zeros, points, evaluation, saver])


def _module(job: Job, first: int) -> Classifier:
    clock, streams, train = job.start.clock, job.streams, job.train
    shift = None if clock.schedule is None else clock.schedule - clock.start
    mixed = train.mixup or train.cutmix
    mixing = Mixing(train, job.dataset.classes, streams["augment"], clock.noise) if mixed else None
    layout = torch.channels_last if job.hardware.channels_last else torch.contiguous_format
    model = job.model.to(memory_format=layout)
    dropout = streams["dropout"]
    return Classifier(model, job.dataset, train, job.schedule, first, shift, clock.stop, dropout, mixing, layout)


def _batches(job: Job, first: int, world: int) -> Training:
    return training_batches(
        job.dataset,
        job.data,
        job.train,
        start=first,
        stop=job.start.clock.stop,
        order=job.streams["order"],
        augment=job.streams["augment"],
        noise=job.start.clock.noise,
        rank=_rank(),
        world=world,
    )


def _trainer(job: Job, callback: pl.Callback, length: int) -> pl.Trainer:
    hardware = job.hardware
    world = hardware.devices * hardware.nodes
    warnings.filterwarnings("ignore", module="pytorch_lightning")  # advice on loaders and loggers that we do not use
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a banner a round
    return pl.Trainer(
        accelerator=hardware.accelerator,
        strategy=_strategy(hardware) if world > 1 else "auto",
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        precision="bf16-mixed" if hardware.precision == "bf16" else "32-true",
        deterministic=hardware.deterministic,
        max_steps=length,
        max_epochs=1,
        accumulate_grad_batches=accumulation(job.train.batch_size, job.train.micro_batch, world),
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


def _strategy(hardware: Hardware) -> Strategy:
    backend = "gloo" if hardware.accelerator == "cpu" else None
    return DDPStrategy(process_group_backend=backend, broadcast_buffers=False)


def first_rank() -> bool:
    """Whether this process is the one that writes."""
    return _rank() == 0


def meet(hardware: Hardware) -> None:
    """Join the other ranks of a launched job before its first round; CPU tensors travel over gloo on any device."""
    gpu = hardware.accelerator != "cpu" and torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")


def agreed(answer: bool) -> bool:
    """The first rank's answer, on all ranks: a file may appear between one rank's look and another's."""
    if not dist.is_initialized():
        return answer
    told = torch.tensor(int(answer))
    dist.broadcast(told, src=0)
    return bool(told)


def wait_for_all() -> None:
    """Let no rank go on before all have come here."""
    if dist.is_initialized():
        dist.barrier()


def _rank() -> int:
    return int(getattr(rank_zero.rank_zero_only, "rank", 0) or 0)


def _size(where: Path | None) -> int:
    assert where is not None
    return sum(file["bytes"] for file in checkpoint.load_manifest(where)["files"])

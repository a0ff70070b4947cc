"""What a criterion ranks: of each prunable tensor this rank's range of the weights, and of all else that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lth_scale import checkpoint, data, files, pruning, saliency, world
from lth_scale.checkpoint import Source, State
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.pruning import INITIAL, NOISE, SALIENCY
from lth_scale.shards import EMA
from lth_scale.streams import numpy_generator
from lth_scale.tasks import Task

Values = Callable[[str, int, int], torch.Tensor]
"""(Tensor's name, start, stop) -> float32 [stop - start]."""

BLOCK = 1 << 16  # numbers drawn from one generator
SAMPLES = 10  # a class, for scores before training (Wang et al. 2020, section 5)


@contextmanager
def ranked(
    experiment: Experiment, task: Task, mask: Mask, final: Source, whole: bool = False
) -> Iterator[list[pruning.Shard]]:
    """The shards from which the mask of the round after ``task`` is found. All ranks call it, and share the reading.

    Args:
        experiment: whose criterion it is.
        task: the ticket's round that has ended.
        mask: its mask.
        final: its last state.
        whole: every rank reads everything.
    """
    if oneshot(experiment):
        mask, final = Mask.ones(mask.shapes), _dense(experiment, task, final)
    part = f"optimizer/{{}}/{EMA}" if experiment.config.prune.weights == EMA else "weights/{}"
    where = task.paths(experiment.paths).saliency
    sources = {name: _sources[name](experiment, task, where) for name in _criterion(experiment).needs}
    shards = []
    for p in experiment.prunable:
        key = part.format(p.name)
        start, stop = (0, p.numel) if whole else final.share(key, world.rank(), world.size())
        extra = {name: values(p.name, start, stop) for name, values in sources.items()}
        kept = mask.range(p.name, start, stop)
        shards.append(pruning.Shard(p.name, final.read(key, start, stop), start, p.shape, kept, p.kind, extra))
    yield shards
    if SALIENCY in sources:
        world.on_first(lambda: files.remove_folder(where))


def _dense(experiment: Experiment, task: Task, final: Source) -> Source:
    """The dense network: at the rewind point for a criterion before training, else at its end."""
    if _criterion(experiment).before:
        return checkpoint.opened(experiment.paths.rewind(task.seed, experiment.k))
    dense = experiment.paths.round(task.seed, "ticket", 0)
    return final if task.round == 0 else checkpoint.final(dense.checkpoints, dense.result)


def oneshot(experiment: Experiment) -> bool:
    """Whether every mask comes from the dense network."""
    return experiment.config.prune.oneshot or _criterion(experiment).before


def noise(seed: int, number: int, name: str, start: int, stop: int) -> torch.Tensor:
    """A range of numbers in a uniformly random order, none negative: a function of its arguments' places alone.

    Args:
        seed: of the replicate's ``mask`` stream.
        number: the round.
        name: the tensor's.
        start: the range's first index in the flattened tensor.
        stop: one past its last.
    """
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    drawn = [_block(seed, number, name, block) for block in blocks] or [np.zeros(0, np.int32)]
    first = blocks.start * BLOCK
    return torch.from_numpy(np.concatenate(drawn)[start - first : stop - first].view(np.float32))


def _block(seed: int, number: int, name: str, block: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Bits of floats from 0 to below infinity, all equally likely: almost 31, where random floats have 24."""
    return numpy_generator(seed, "noise", number, name, block).integers(0, 0x7F800000, BLOCK, np.int32)


def _criterion(experiment: Experiment) -> pruning.Criterion:
    return pruning.criteria[experiment.config.prune.criterion]


def _initial(experiment: Experiment, task: Task, _: Path) -> Values:
    stored = checkpoint.opened(experiment.paths.rewind(task.seed, 0))
    return lambda name, start, stop: stored.read(f"weights/{name}", start, stop)


def _noise(experiment: Experiment, task: Task, _: Path) -> Values:
    seed, number = experiment.stream(task.seed, "mask"), 0 if oneshot(experiment) else task.round
    return lambda name, start, stop: noise(seed, number, name, start, stop)


def _saliency(experiment: Experiment, task: Task, where: Path) -> Values:
    """Computed by the first rank with the whole network, and read by all from where it is stored for the time being."""
    world.on_first(lambda: _store(experiment, task, where))
    stored = checkpoint.opened(where)
    return lambda name, start, stop: stored.read(f"weights/{name}", start, stop)


_sources = {INITIAL: _initial, NOISE: _noise, SALIENCY: _saliency}


def _store(experiment: Experiment, task: Task, where: Path) -> None:
    files.remove_folder(where)  # what an attempt that was killed has left
    state = checkpoint.load_state(experiment.paths.rewind(task.seed, experiment.k))
    cpu = experiment.config.hardware.accelerator == "cpu" or not torch.cuda.is_available()
    network = _network(experiment, state).to("cpu" if cpu else "cuda")
    prune = experiment.config.prune
    given = saliency.Given(
        network=network,
        tensors=experiment.prunable,
        batches=Served(experiment, task.seed, next(network.parameters()).device),
        shape=experiment.description.shape,
        prune=prune,
        number=task.round + 1,
    )
    checkpoint.save_state(where, State(saliency.methods[prune.criterion](given), step=state.step))


@torch.no_grad()
def _network(experiment: Experiment, state: State) -> nn.Module:
    network = experiment.model(0)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        tensor.copy_((state.weights | state.buffers)[name])
    return network


class Served:
    """The first training batches of a replicate's order, without augmentation; the same each time they are asked for.

    As many as prune.batches says, or as hold SAMPLES images a class.
    """

    def __init__(self, experiment: Experiment, seed: int, device: torch.device) -> None:
        config = experiment.config
        needed = -(-SAMPLES * experiment.description.classes // config.train.batch_size)
        plain = replace(config.data, augment="none")
        self._device, self._dataset = device, data.load(plain)
        self._batches = data.training_batches(
            self._dataset,
            plain,
            config.train,
            start=0,
            stop=min(config.prune.batches or needed, experiment.steps_per_epoch),
            order=experiment.stream(seed, "order"),
            augment=experiment.stream(seed, "augment"),
            noise=0,
        )

    def __iter__(self) -> Iterator[saliency.Batch]:
        for images, labels in self._batches:
            here = images.to(self._device)
            yield self._dataset.normalise(here) if here.dtype == torch.uint8 else here, labels.to(self._device)

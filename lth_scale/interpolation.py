"""Error on the straight line between two networks (Frankle et al. 2020, section 2). All ranks share the evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lth_scale import checkpoint, models
from lth_scale.arms import split_draw
from lth_scale.arms.lines import POINTS
from lth_scale.checkpoint import Source
from lth_scale.data import SPLITS, AnyDataset, SplitName, evaluation_batches
from lth_scale.experiment import Experiment
from lth_scale.shards import EMA
from lth_scale.tasks import Task
from lth_scale.training import on_gpu
from lth_scale.training.evaluation import TRAIN_SAMPLES, evaluate, prepared

SCHEMA = 1
ALPHAS = tuple(number / (POINTS - 1) for number in range(POINTS))

Tensors = Mapping[str, Tensor]
Errors = dict[SplitName, list[float]]
"""By split: errors in percentage points, one for each of ALPHAS."""


def measure(experiment: Experiment, task: Task) -> dict[str, Any]:
    """What ``line.json`` holds; its keys are docs/run_folder.md's. A function of the two stored ends alone."""
    device = torch.device("cuda" if on_gpu(experiment.config.hardware) else "cpu")
    model = experiment.model(0).to(device).eval()
    first, second = (_tensors(source, device) for source in ends(experiment, task))
    error = {"stored": errors(model, first, second, experiment.dataset)}
    batchnorm = models.has_batchnorm(model)
    error["reestimated"] = errors(model, first, second, experiment.dataset, True) if batchnorm else error["stored"]
    return {
        "schema": SCHEMA,
        "seed": task.seed,
        "arm": task.arm,
        "kind": split_draw(task.arm)[0],
        "round": task.round,
        "density": experiment.ticket_mask(task).density,
        "ends": [str(end) for end in task.needs],
        "k": experiment.k,
        "batchnorm": batchnorm,
        "alphas": ALPHAS,
        "error": error,
        "instability": {
            how: {split: instability(line) for split, line in lines.items()} for how, lines in error.items()
        },
    }


def ends(experiment: Experiment, task: Task) -> tuple[Source, Source]:
    """The two networks of a line: of one round alone, its end and theta_k times its mask."""
    found: list[Source] = []
    for end in task.needs:
        paths = end.paths(experiment.paths)
        found.append(checkpoint.final(paths.checkpoints, paths.result))
    if len(found) == 1:
        origin = checkpoint.opened(experiment.paths.rewind(task.seed, experiment.k))
        found.insert(0, origin.masked(experiment.ticket_mask(task)))
    return found[0], found[1]


def instability(line: Sequence[float]) -> float:
    """The maximum of the errors on a line minus the mean of those at its two ends, in points."""
    return max(line) - (line[0] + line[-1]) / 2


def _tensors(source: Source, device: torch.device) -> dict[str, Tensor]:
    """Weights and buffers by name; where there are averages of the weights, those, as they are what is evaluated."""
    state = source.whole()
    averages = {name: held[EMA] for name, held in state.optimizer.items() if EMA in held}
    return {name: t.to(device) for name, t in (state.weights | averages | state.buffers).items()}


def errors(model: nn.Module, first: Tensors, second: Tensors, dataset: AnyDataset, reestimate: bool = False) -> Errors:
    """Errors at ALPHAS on each split that has images, of train on as many as training reports.

    Args:
        model: takes the interpolated values; in eval mode.
        first: parameters and buffers at alpha 0, on the model's device.
        second: those at alpha 1.
        dataset: the images.
        reestimate: whether BatchNorm's statistics are those of the interpolated network on unaugmented training
            images; else they are interpolated like weights.
    """
    device = next(model.parameters()).device
    found: Errors = {split: [] for split in SPLITS if dataset.length(split)}
    for alpha in ALPHAS:
        place(model, first, second, alpha)
        if reestimate:
            reestimate_statistics(model, dataset)
        for split, line in found.items():
            line.append(100 * (1 - evaluate(model, dataset, split, device)[1]))
    return found


@torch.no_grad()
def place(model: nn.Module, first: Tensors, second: Tensors, alpha: float) -> None:
    """Put (1 - alpha) first + alpha second into a model; exactly an end at 0 and 1, or where both ends agree."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        one, other = first[name], second[name]
        value.copy_(torch.lerp(one, other, alpha) if value.is_floating_point() else one)


@torch.no_grad()
def reestimate_statistics(model: nn.Module, dataset: AnyDataset) -> None:
    """BatchNorm's running statistics anew: the mean over batches of unaugmented training images, in their order.

    Every rank sees all of the images, so the statistics are the same bits on any number of ranks.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a cumulative mean
        layer.train()
    device = next(model.parameters()).device
    for images, _ in evaluation_batches(dataset, "train", TRAIN_SAMPLES, 0, 1):
        model(prepared(images.to(device), dataset))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()

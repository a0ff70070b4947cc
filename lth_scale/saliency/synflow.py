"""SynFlow: scores without data, found and pruned by in a hundred steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lth_scale.masks import Bits
from lth_scale.pruning import SALIENCY, Budget, Shard, budgets, next_masks, scopes
from lth_scale.saliency.base import Given, methods

STEPS = 100  # Tanaka et al. 2020, section 6
SMALLEST = torch.finfo(torch.float32).smallest_normal


@methods.register("synflow")
def synflow(given: Given) -> dict[str, Tensor]:
    """|w| dR/d|w|, R being the sum of the outputs of the network of absolute values, for an input of ones.

    Tanaka et al. 2020, section 5 and algorithm 1: in float64 and eval mode, scores are computed and the lowest removed
    STEPS times, the density falling by one factor a step from 1 to that of the round; of the last step this is the
    scores, 0 where a weight is gone already. They are divided by the largest, so that float32 holds them. Under n:m,
    which has no densities in between, there is one step.
    """
    network, prune = given.network.double().eval(), replace(given.prune, criterion="synflow")
    with torch.no_grad():
        for value in [*network.parameters(), *network.buffers()]:
            value.abs_()
    goal = budgets(given.tensors, prune, given.number)
    scores, kept = _scores(network, given), {t.name: Bits.ones(t.numel) for t in given.tensors}
    for step in range(1, 1 if scopes[prune.scope].pattern else STEPS):
        kept = next_masks(_shards(given, scores, kept), prune, _between(given, goal, step))
        _remove(network, kept)
        scores = _scores(network, given)
    return given.named([_marked(score, kept[t.name]) for t, score in zip(given.tensors, scores, strict=True)])


def _scores(network: nn.Module, given: Given) -> list[Tensor]:
    """float64 scores of the weights that there are, the largest 1."""
    weights = given.weights()
    outputs = network(torch.ones(1, *given.shape, dtype=torch.float64, device=weights[0].device))
    scores = [w.detach() * g for w, g in zip(weights, torch.autograd.grad(outputs.sum(), weights), strict=True)]
    largest = torch.stack([score.max() for score in scores]).max()
    return [score / largest for score in scores] if largest > 0 else scores


def _shards(given: Given, scores: Sequence[Tensor], kept: Mapping[str, Bits]) -> list[Shard]:
    flat = [score.float().cpu().flatten() for score in scores]
    return [
        Shard(t.name, score, 0, t.shape, kept[t.name], t.kind, {SALIENCY: score})
        for t, score in zip(given.tensors, flat, strict=True)
    ]


def _between(given: Given, goal: Sequence[Budget], step: int) -> list[Budget]:
    """What each pool keeps after a step on the way to its goal."""
    sizes = [sum(given.tensors[member].numel for member in budget.members) for budget in goal]
    return [
        replace(budget, kept=max(budget.kept, round(size * (max(budget.kept, 1) / size) ** (step / STEPS))))
        for size, budget in zip(sizes, goal, strict=True)
    ]


@torch.no_grad()
def _remove(network: nn.Module, kept: Mapping[str, Bits]) -> None:
    for name, bits in kept.items():
        weight = network.get_parameter(name)
        weight.mul_(torch.from_numpy(bits[:]).reshape(weight.shape).to(weight))


def _marked(score: Tensor, kept: Bits) -> Tensor:
    """The scores, above 0 exactly where a weight is there, so that those removed earlier are the first to go."""
    there = torch.from_numpy(kept[:]).reshape(score.shape).to(score.device)
    return torch.where(there, score.float().clamp(min=SMALLEST), 0.0)

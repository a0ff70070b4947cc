"""Scores before training, against what a tiny network does when single weights are changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lth_scale import models
from lth_scale.config import Prune
from lth_scale.pruning import SALIENCY, Shard, budgets, criteria, next_masks
from lth_scale.saliency import Given, gradients, methods

EPSILON = 1e-5
Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]


def network() -> nn.Module:
    """In float64, with BatchNorm, whose statistics in train mode are the batch's, and dropout, which is left out."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(5, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(6, 4),
        nn.Tanh(),
        nn.Linear(4, 3),
    ]
    return nn.Sequential(*layers).double()


def batches() -> Batches:
    """Of different sizes: each image counts as much."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(size, 5, generator=generator, dtype=torch.float64) for size in (8, 5)]
    return [(images, torch.randint(0, 3, (len(images),), generator=generator)) for images in drawn]


def given(net: nn.Module, prune: Prune = Prune(), shape: tuple[int, ...] = (5,)) -> Given:  # noqa: B008
    return Given(copy.deepcopy(net), models.prunable(net), batches(), shape, prune, 1)


def loss(net: nn.Module, temperature: float = 1.0, train: bool = True) -> torch.Tensor:
    net = net.train(train)
    net[3].eval()  # type: ignore[index,operator]
    parts = [cross_entropy(net(images) / temperature, labels, reduction="sum") for images, labels in batches()]
    return torch.stack(parts).sum() / sum(len(labels) for _, labels in batches())


def squared_gradient(net: nn.Module) -> torch.Tensor:
    """Of the prunable weights only."""
    weights = [net.get_parameter(tensor.name) for tensor in models.prunable(net)]
    found = torch.autograd.grad(loss(net, gradients.TEMPERATURE), weights)
    return torch.stack([(part * part).sum() for part in found]).sum()


def slopes(net: nn.Module, value: Callable[[nn.Module], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight by weight: the change of a value when the weight is scaled, by central differences."""
    found = {}
    for tensor in models.prunable(net):
        weight = net.get_parameter(tensor.name)
        flat, slope = weight.data.view(-1), torch.zeros(tensor.numel, dtype=torch.float64)
        for index in range(tensor.numel):
            kept = float(flat[index])
            ends = []
            for scale in (1 + EPSILON, 1 - EPSILON):
                flat[index] = kept * scale
                ends.append(float(value(net).detach()))
            flat[index] = kept
            slope[index] = (ends[0] - ends[1]) / (2 * EPSILON)
        found[tensor.name] = slope.view(tensor.shape)
    return found


def close(scores: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Within a thousandth of the largest: a ranking of more digits would be one of rounding errors."""
    largest = max(float(values.abs().max()) for values in expected.values())
    return scores.keys() == expected.keys() and all(
        torch.allclose(scores[name].double(), values, rtol=1e-4, atol=1e-4 * largest)
        for name, values in expected.items()
    )


def test_every_criterion_before_training_has_its_scores() -> None:
    assert set(methods) == {name for name in criteria if criteria[name].before}


def test_snip_is_what_the_loss_loses_with_a_weight() -> None:
    expected = {name: slope.abs() for name, slope in slopes(network(), loss).items()}
    assert close(methods["snip"](given(network())), expected)
    in_eval_mode = {n: s.abs() for n, s in slopes(network(), lambda net: loss(net, train=False)).items()}
    assert not close(methods["snip"](given(network())), in_eval_mode)


def test_grasp_is_what_the_gradient_loses_with_a_weight() -> None:
    """w Hg is half the slope of g.g."""
    expected = {name: slope / 2 for name, slope in slopes(network(), squared_gradient).items()}
    scores = methods["grasp"](given(network()))
    assert close(scores, expected)
    assert not close({name: -values for name, values in scores.items()}, expected)


def test_what_grasp_removes_leaves_the_most_gradient() -> None:
    """The paper's claim, and the control of its sign: removing the other end leaves less than was there."""

    def after(sign: float) -> float:
        net, scores = network(), methods["grasp"](given(network()))
        every = torch.cat([sign * values.flatten() for values in scores.values()])
        bound = every.sort().values[len(every) // 10]
        for name, values in scores.items():
            net.get_parameter(name).data[sign * values < bound] = 0
        return float(squared_gradient(net).detach())

    before = float(squared_gradient(network()).detach())
    assert after(1.0) > before > after(-1.0)


def test_scores_do_not_depend_on_how_the_batches_are_cut() -> None:
    """Without batch statistics."""
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    images, labels = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    for name in ("snip", "grasp"):
        whole = Given(net, models.prunable(net), [(images, labels)], (5,), Prune(), 1)
        assert close(methods[name](whole), {n: s.double() for n, s in methods[name](given(net)).items()})


def test_dropout_is_left_out() -> None:
    first, second = (methods["snip"](given(network())) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def linear() -> nn.Module:
    torch.manual_seed(3)
    sizes = ((12, 20), (20, 3), (3, 10))
    layers = [part for size in sizes for part in (nn.Linear(*size, bias=False), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def by_paths(first: torch.Tensor, second: torch.Tensor, third: torch.Tensor) -> list[torch.Tensor]:
    """|w| times the products of all paths through it, written out; each matrix is [out, in] of absolute values."""
    into_second = first.sum(1)
    into_third = second @ into_second
    out_of_second = third.sum(0)
    out_of_first = second.T @ out_of_second
    return [
        first * out_of_first[:, None],
        second * out_of_second[:, None] * into_second,
        third * into_third,
    ]


def reference(net: nn.Module, keep: int, steps: int) -> list[torch.Tensor]:
    """Algorithm 1 by sorting everything in every step."""
    weights = [p.detach().abs() for p in net.parameters()]
    masks = [torch.ones_like(w) for w in weights]
    total = sum(w.numel() for w in weights)
    for step in range(1, steps + 1):
        scores = by_paths(*(w * mask for w, mask in zip(weights, masks, strict=True)))
        every = torch.cat([torch.where(m > 0, s, -1.0).flatten() for s, m in zip(scores, masks, strict=True)])
        left = torch.zeros(total, dtype=torch.float64)
        left[every.argsort(descending=True)[: round(total * (keep / total) ** (step / steps))]] = 1
        masks = [part.view_as(w) for part, w in zip(left.split([w.numel() for w in weights]), weights, strict=True)]
    return masks


def masks_of(net: nn.Module, prune: Prune) -> dict[str, torch.Tensor]:
    tensors = models.prunable(net)
    scores = methods["synflow"](given(net, prune, (12,)))
    shards = [
        Shard(t.name, scores[t.name].flatten(), 0, t.shape, None, t.kind, {SALIENCY: scores[t.name].flatten()})
        for t in tensors
    ]
    found = next_masks(shards, prune, budgets(tensors, prune, 1))
    return {t.name: torch.from_numpy(found[t.name][:]).view(t.shape) for t in tensors}


def test_synflow_is_its_algorithm() -> None:
    net = linear()
    total = sum(p.numel() for p in net.parameters())
    prune = Prune(schedule="target", to=30 / total, rounds=1, criterion="synflow")
    found = list(masks_of(net, prune).values())
    assert sum(int(mask.sum()) for mask in found) == 30
    assert all(torch.equal(mask, other > 0) for mask, other in zip(found, reference(net, 30, 100), strict=True))
    in_one_step = reference(net, 30, 1)
    assert any(not torch.equal(mask, other > 0) for mask, other in zip(found, in_one_step, strict=True))


def test_synflow_is_conserved_and_empties_no_layer() -> None:
    """The sum of scores is the same for every layer (Tanaka et al. 2020, theorem 2); magnitude empties one first."""
    scores = methods["synflow"](given(linear(), Prune(rounds=1, rate=1e-9, criterion="synflow"), (12,)))
    sums = [float(values.double().sum()) for values in scores.values()]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)
    net = linear()
    net[0].weight.data *= 1e-3  # type: ignore[index,operator]
    end = {"schedule": "target", "to": 0.03, "rounds": 1}
    assert all(int(mask.sum()) for mask in masks_of(net, Prune(criterion="synflow", **end)).values())
    held = [
        Shard(t.name, net.get_parameter(t.name).detach().float().flatten(), 0, t.shape, None, t.kind)
        for t in models.prunable(net)
    ]
    kept = next_masks(held, Prune(**end), budgets(held, Prune(**end), 1))
    assert kept["0.weight"].count() == 0


@pytest.mark.parametrize("scope", ["global", "layer", "uniform", "erk", "n:m"])
def test_synflow_keeps_to_its_scope(scope: str) -> None:
    prune = Prune(scope=scope, criterion="synflow", rounds=1, **({} if scope == "n:m" else {"rate": 0.8}))
    tensors = models.prunable(linear())
    found = masks_of(linear(), prune)
    for budget in budgets(tensors, prune, 1):
        assert sum(int(found[tensors[member].name].sum()) for member in budget.members) == budget.kept


def test_attention_can_be_scored() -> None:
    layer = nn.TransformerEncoderLayer(5, 1, 8, dropout=0.0, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(5, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(images[:, None] * torch.ones(4, 1)).mean(1))  # type: ignore[no-any-return]

    net = Net().double()
    for name in methods:
        scores = methods[name](given(net, Prune(rounds=1, criterion=name)))
        assert scores.keys() == {tensor.name for tensor in models.prunable(net)}
        assert all(bool(values.isfinite().all()) for values in scores.values())

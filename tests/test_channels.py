"""Channels: what belongs together, the mask that cuts them off, and the same function once they are gone."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lth_scale import config
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.models import build, channels, macs, models, prunable, skeleton, vgg
from lth_scale.models.channels import Axis, Group

pytestmark = pytest.mark.slow

SHAPE = (3, 16, 16)
CLASSES = 7


@pytest.fixture(autouse=True)
def _narrow_vggs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "CHANNELS", (4, 5, 6, 7, 8))


def make(name: str, **fields: Any) -> nn.Module:
    if name.startswith("resnet"):
        fields.setdefault("width", 4)
    if name.startswith("lenet"):
        fields.setdefault("hidden", (20, 12))
    model = build(config.Model(name, **fields), SHAPE, CLASSES, 0)
    return disturbed(model)


@torch.no_grad()
def disturbed(model: nn.Module) -> nn.Module:
    """In float64, with biases, BatchNorm parameters and statistics that are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in [*model.double().named_parameters(), *model.named_buffers()]:
        if tensor.dim() == 1 and tensor.is_floating_point():
            random = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(random + 0.5 if "var" in name else random - 0.3)
    return model


def drawn(groups: Sequence[Group], seed: int = 0) -> list[torch.Tensor]:
    """Some channels of every group, where it has two or more, but not all."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for group in groups:
        order = torch.randperm(group.size, generator=generator)
        kept.append(order < max(1, group.size - 1 - int(torch.randint(group.size, (), generator=generator))))
    return kept


@torch.no_grad()
def masked(model: nn.Module, mask: Mask) -> nn.Module:
    model = copy.deepcopy(model)
    for name, kept in mask.items():
        model.get_parameter(name).mul_(kept)
    return model


def rows_only(groups: Sequence[Group], kept: Sequence[torch.Tensor], model: nn.Module) -> Mask:
    """The mask that forgets the consumers: BatchNorm's bias of a dead channel then still reaches its successors."""
    producing = [Group(group.size, group.producers, (), ()) for group in groups]
    return channels.channel_mask(producing, kept, prunable(model))


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=0, atol=1e-10 * max(1.0, other.abs().max().item()))


def check_removal(model: nn.Module, groups: Sequence[Group], kept: Sequence[torch.Tensor]) -> None:
    """Masked and narrowed compute the same; rows alone do not; every count is exact."""
    mask = channels.channel_mask(groups, kept, prunable(model))
    network = channels.narrowed(model, groups, kept)
    left = {p.name: p.numel for p in prunable(network)}
    assert left == channels.counts(groups, kept, prunable(model)) == {k: n for k, (n, _) in mask.counts().items()}
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in model.parameters())
    assert all(torch.equal(*pair) for pair in zip(channels.kept_channels(groups, mask), kept, strict=True))
    wrong = masked(model, rows_only(groups, kept, model))
    model = masked(model, mask)
    for training in (False, True):  # training changes the statistics, so it comes last
        with torch.no_grad():
            expected = model.train(training)(images())
            assert close(network.train(training)(images()), expected)
            assert not close(wrong.train(training)(images()), expected)
    back = channels.widened(stored(network), stored(model), groups, kept)
    assert all(close(back[name], tensor) for name, tensor in stored(model).items())


FOLLOWED = [name for name in models if not name.startswith("vit")]


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_masked_model_is_the_one_without_the_channels(name: str) -> None:
    model = make(name)
    groups = channels.groups(model, SHAPE)
    check_removal(model, groups, drawn(groups))


@pytest.mark.parametrize("name", ["timm:resnet18", pytest.param("timm:resnet50", marks=pytest.mark.slow)])
def test_a_masked_timm_resnet_is_the_one_without_the_channels(name: str) -> None:
    model = make(name)
    groups = channels.groups(skeleton(config.Model(name), SHAPE, CLASSES), SHAPE)
    covered = {axis.name for group in groups for axis in group.axes}
    assert {tensor.name for tensor in prunable(model)} <= covered
    check_removal(model, groups, drawn(groups))


@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", "timm:regnety_002"])
def test_depthwise_and_grouped_convolutions_and_gates_of_timm(name: str) -> None:
    model = make(name)
    groups = channels.groups(model, SHAPE)
    grouped = {f"{key}.weight" for key, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    assert grouped and grouped <= {axis.name for group in groups for axis in group.producers}
    check_removal(model, groups, drawn(groups))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, mask: Mask | None) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(images()), torch.arange(4)).backward()
    for name, kept in (mask or {}).items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        gradient.mul_(kept)
    optimizer.step()


@pytest.mark.parametrize("name", ["lenet_300_100", "conv2", "vgg11", "resnet8", "resnet18_cifar"])
def test_masked_and_narrowed_train_alike(name: str) -> None:
    model = make(name)
    groups = channels.groups(model, SHAPE)
    kept = drawn(groups)
    mask = channels.channel_mask(groups, kept, prunable(model))
    wrong_mask = rows_only(groups, kept, model)
    network, wrong, model = channels.narrowed(model, groups, kept), masked(model, wrong_mask), masked(model, mask)
    for each, pruned in ((network, None), (model, mask), (wrong, wrong_mask)):
        optimizer = torch.optim.SGD(each.train().parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
        for _ in range(3):
            step(each, optimizer, pruned)
    trained = dict(channels.narrowed(model, groups, kept).named_parameters())
    assert all(close(parameter, trained[key]) for key, parameter in network.named_parameters())
    trained = dict(channels.narrowed(wrong, groups, kept).named_parameters())
    assert not all(close(parameter, trained[key]) for key, parameter in network.named_parameters())


def test_removal_saves_the_multiply_adds_that_a_tickets_densities_say() -> None:
    model = make("resnet18_cifar")
    groups = channels.groups(model, SHAPE)
    kept = drawn(groups)
    left, dense = channels.counts(groups, kept, prunable(model)), macs(model, SHAPE)
    expected = {p.name: dense[p.name] * left[p.name] // p.numel for p in prunable(model)}
    assert macs(channels.narrowed(model, groups, kept), SHAPE) == expected != dense


def test_hidden_units_are_channels() -> None:
    assert channels.groups(make("lenet_300_100", hidden=(20, 12)), SHAPE) == [
        Group(20, (Axis("fc1.weight", 0, 1),), (Axis("fc1.bias", 0, 1),), (Axis("fc2.weight", 1, 1),)),
        Group(12, (Axis("fc2.weight", 0, 1),), (Axis("fc2.bias", 0, 1),), (Axis("output.weight", 1, 1),)),
    ]


def test_a_flattened_channel_is_a_block_of_inputs() -> None:
    groups = channels.groups(make("conv2"), SHAPE)
    assert [group.size for group in groups] == [64, 64, 256, 256]
    assert groups[1].consumers == (Axis("fc1.weight", 1, 8 * 8),)


def test_residual_stages_are_one_group_each_with_the_shortcuts() -> None:
    groups = channels.groups(make("resnet18_cifar"), SHAPE)
    stem, second = groups[0], next(g for g in groups if "blocks.2.conv2.weight" in [a.name for a in g.producers])
    assert [a.name for a in stem.producers] == ["conv1.weight", "blocks.0.conv2.weight", "blocks.1.conv2.weight"]
    assert [a.name for a in stem.consumers] == [
        f"blocks.{place}.weight" for place in ("0.conv1", "1.conv1", "2.conv1", "2.shortcut.0")
    ]
    assert "blocks.2.shortcut.0.weight" in [a.name for a in second.producers]
    assert {"blocks.2.shortcut.1.running_var", "blocks.3.bn2.bias"} <= {a.name for a in second.followers}
    assert len(groups) == 4 + 8  # stages, and what is inside each block


def test_channels_that_an_unprunable_shortcut_reads_are_left_out() -> None:
    model = make("resnet20")
    groups = channels.groups(model, SHAPE)
    producers = [{axis.name for axis in group.producers} for group in groups]
    assert [names for names in producers if len(names) > 1] == [
        {"blocks.6.conv2.weight", "blocks.6.shortcut.0.weight", "blocks.7.conv2.weight", "blocks.8.conv2.weight"}
    ]
    assert len(groups) == 9 + 1
    assert not {"conv1.weight", "output.bias"} & {axis.name for group in groups for axis in group.axes}


class Toy(nn.Module):
    """Two convolutions around something to try, and an output."""

    def __init__(self, between: nn.Module, reads: int = 8) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.between = between
        self.second, self.output = nn.Conv2d(reads, 6, 3), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.between(F.relu(self.bn(self.first(x)))))
        return self.output(x.mean((2, 3)))


class Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Identity(nn.Module):
    """A branch, and a shortcut of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.branch(x))


class PaddedShortcut(nn.Module):
    """He et al. 2016, section 4.2, option A: every other pixel, and channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Conv2d(8, 12, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.branch(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


class Gate(nn.Module):
    """Squeeze and excitation, and a gate of each pixel that all channels share."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.excite, self.pixels = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return x * gate * torch.sigmoid(self.pixels(x))


TOYS = {
    "identity": (Identity, 8, [8, 6]),
    "option A": (PaddedShortcut, 12, [6]),  # neither the padded channels nor what the padding meets
    "every other pixel": (lambda: Function(lambda x: x[:, :, ::2, ::2]), 8, [8, 6]),
    "padded pixels": (lambda: Function(lambda x: F.pad(x, (1, 1, 0, 2))), 8, [8, 6]),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), 8, [8, 6]),
    "multiplied depthwise": (lambda: nn.Conv2d(8, 16, 3, groups=8), 16, [8, 6]),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4), 12, [4, 6]),
    "a sum by keyword": (lambda: Function(lambda x: torch.add(x, other=x.relu(), alpha=2)), 8, [8, 6]),
    "gate": (Gate, 8, [8, 4, 6]),
    "a constant of each channel": (
        lambda: Function(lambda x: (x + torch.arange(8.0).double().view(8, 1, 1)).relu() + x),
        8,
        [6],
    ),
    "a number": (lambda: Function(lambda x: 2 * x + 1), 8, [8, 6]),
}


@pytest.mark.parametrize("name", TOYS)
def test_what_channels_are_followed_through(name: str) -> None:
    between, reads, sizes = TOYS[name]
    model = disturbed(Toy(between(), reads))
    groups = channels.groups(model, SHAPE)
    assert [group.size for group in groups] == sizes
    check_removal(model, groups, drawn(groups))


def test_one_layer_used_twice_makes_both_uses_one_group() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    model = disturbed(Toy(nn.Sequential(layer, nn.ReLU(), layer)))
    groups = channels.groups(model, SHAPE)
    assert [group.size for group in groups] == [8, 6]
    assert {(axis.name, axis.dim) for axis in groups[0].axes} >= {("between.0.weight", 0), ("between.0.weight", 1)}
    kept = [torch.arange(8) < 5, torch.ones(6, dtype=torch.bool)]
    assert channels.counts(groups, kept, prunable(model))["between.0.weight"] == 5 * 5 * 9
    check_removal(model, groups, kept)


class Ends(nn.Module):
    """Additions to the image and to the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.logits = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, CLASSES)
        self.hidden, self.output = nn.Linear(CLASSES, 5), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.logits((x + self.conv(x)).mean((2, 3)))
        return logits + self.output(self.hidden(logits).relu())


def test_channels_that_meet_the_image_or_the_logits_stay() -> None:
    assert [group.producers for group in channels.groups(Ends(), SHAPE)] == [(Axis("hidden.weight", 0, 1),)]


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: torch.cat([x, x], 1), "cat in between (Function)"),
        (lambda x: x.flip(1), "flip in between (Function)"),
        (lambda x: F.layer_norm(x, x.shape[1:]), "layer_norm in between (Function)"),
        (lambda x: x[:, 1:], "indexing in between (Function)"),
        (lambda x: x * x.mean(1, keepdim=True), "mean over the channels or before them in between (Function)"),
        (lambda x: F.conv2d(x, x.mean((2, 3), keepdim=True)), "conv2d in between (Function)"),
        (lambda x: x + x.flatten(2).sum(2), "sum in between (Function)"),
        (lambda x: F.linear(x, torch.ones(16, 16)), "linear over another dimension than that of channels in between"),
        (
            lambda x: torch.from_numpy(x.numpy()[:, ::-1].copy()),
            "conv2d of a tensor of unknown origin in second (Conv2d)",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(function: Any, named: str) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"through {named}") + ".*channel tickets need convolutional or fully connected"
    ):
        channels.groups(Toy(Function(function)), SHAPE)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("timm:densenet121", "features.denseblock1"),
        ("timm:vit_tiny_patch16_224", "patch_embed"),
        *((name, "") for name in models if name not in FOLLOWED),
    ],
)
def test_networks_that_cannot_be_followed_are_refused(name: str, layer: str) -> None:
    model = skeleton(config.Model(name), (3, 32, 32), CLASSES)
    with pytest.raises(UserError, match=f"in .*{layer}.*without attention, concatenation"):
        channels.groups(model, (3, 32, 32))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_following_leaves_the_model_as_it_is_and_needs_no_values() -> None:
    model = make("resnet8").train()
    before = copy.deepcopy(model.state_dict())
    groups = channels.groups(model, SHAPE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert channels.groups(skeleton(config.Model("resnet8", width=4), SHAPE, CLASSES), SHAPE) == groups


def test_an_unstructured_mask_is_no_channel_mask() -> None:
    model = make("lenet_300_100")
    groups, dense = channels.groups(model, SHAPE), Mask.ones({p.name: p.shape for p in prunable(model)})
    assert all(kept.all() for kept in channels.kept_channels(groups, dense))
    tensors = dict(dense)
    tensors["fc2.weight"][0, 0] = False
    with pytest.raises(UserError, match="does not prune whole channels"):
        channels.kept_channels(groups, Mask(tensors))


def test_scores_are_means_over_the_surviving_weights_of_all_producers() -> None:
    model = make("resnet18_cifar")
    groups = channels.groups(model, SHAPE)
    tensors = {p.name: model.get_parameter(p.name).abs() for p in prunable(model)}
    kept = drawn(groups)
    mask = channels.channel_mask(groups, kept, prunable(model))
    stem, names = groups[0], ("conv1.weight", "blocks.0.conv2.weight", "blocks.1.conv2.weight")
    for channel in range(stem.size):
        weights = torch.cat([tensors[name][channel][mask[name][channel]] for name in names])
        means, sums = (channels.scores(groups, tensors, mask, mean)[0][channel] for mean in (True, False))
        assert sums.dtype == torch.float64 and torch.isclose(sums, weights.sum())
        assert torch.isclose(means, weights.mean()) if kept[0][channel] else means == sums == 0


@given(seed=st.integers(0, 100), shares=st.lists(st.floats(0.05, 1), min_size=1, max_size=3), floor=st.integers(1, 3))
def test_a_selection_is_exact_minimal_monotone_and_keeps_the_floor(seed: int, shares: list[float], floor: int) -> None:
    tensors = prunable(SMALL)
    values = [torch.rand(g.size, generator=torch.Generator().manual_seed(seed)).mul(4).round() for g in GROUPS]
    total, least, earlier = sum(p.numel for p in tensors), channels.fewest(GROUPS, tensors, floor), None
    for share in sorted(shares, reverse=True):
        target = max(least, int(share * total))
        kept, counts = channels.select(GROUPS, tensors, values, target, earlier, floor)
        mask = channels.channel_mask(GROUPS, kept, tensors)
        assert counts == {name: left for name, (left, _) in mask.counts().items()} and mask.kept <= target
        assert all(alive.sum() >= floor for alive in kept)
        before = earlier or channels.everything(GROUPS)
        assert not any((now & ~then).any() for now, then in zip(kept, before, strict=True))
        gone = [
            (values[group][index].item(), group, int(index))
            for group, (now, then) in enumerate(zip(kept, before, strict=True))
            for index in (then & ~now).nonzero().flatten()
        ]
        if gone:  # the last one had to go
            _, group, index = max(gone)
            again = [alive.clone() for alive in kept]
            again[group][index] = True
            assert sum(channels.counts(GROUPS, again, tensors).values()) > target
        earlier = kept


SMALL = make("lenet_300_100", hidden=(9, 7, 5))
GROUPS = channels.groups(SMALL, SHAPE)


def test_ranks_prune_all_groups_alike_where_scores_would_empty_one() -> None:
    tensors, total = prunable(SMALL), sum(p.numel for p in prunable(SMALL))
    values = [torch.rand(group.size) + 10 * place for place, group in enumerate(GROUPS)]
    kept, _ = channels.select(GROUPS, tensors, values, total // 2)
    assert all(kept[0].sum() < alive.sum() == len(alive) for alive in kept[1:])
    for target in (total // 2, total // 4):
        ranked = channels.ranks(values, kept if target < total // 2 else channels.everything(GROUPS))
        kept, _ = channels.select(GROUPS, tensors, ranked, target, kept if target < total // 2 else None)
        shares = [alive.double().mean().item() for alive in kept]
        assert max(shares) - min(shares) <= 2 / 5  # a channel more or less, of 5 in the smallest group
        best = [values[alive].min() > values[~alive].max() for values, alive in zip(values, kept, strict=True)]
        assert all(best)


def test_equal_scores_go_by_group_and_index() -> None:
    tensors, values = prunable(SMALL), [torch.zeros(group.size) for group in GROUPS]
    target = sum(channels.counts(GROUPS, [torch.arange(9) > 7, *channels.everything(GROUPS)[1:]], tensors).values()) - 1
    kept, _ = channels.select(GROUPS, tensors, values, target)
    assert [alive.int().tolist() for alive in kept] == [[0] * 8 + [1], [0] + [1] * 6, [1] * 5]
    values[0][3] = -1
    kept, _ = channels.select(GROUPS, tensors, values, sum(p.numel for p in tensors) - 1)
    assert [alive.logical_not().nonzero().flatten().tolist() for alive in kept] == [[3], [], []]


def test_selections_that_cannot_be_are_refused() -> None:
    tensors, values = prunable(SMALL), [torch.zeros(group.size) for group in GROUPS]
    least = channels.fewest(GROUPS, tensors, 2)
    assert least == 2 * SHAPE[0] * SHAPE[1] * SHAPE[2] + 2 * 2 + 2 * 2 + 2 * CLASSES
    assert sum(channels.select(GROUPS, tensors, values, least, floor=2)[1].values()) == least
    with pytest.raises(UserError, match=f"with 2 in each group {least:,} are"):
        channels.select(GROUPS, tensors, values, least - 1, floor=2)
    values[1][0] = float("nan")
    with pytest.raises(UserError, match=r"channels of fc2\.weight have NaN scores"):
        channels.select(GROUPS, tensors, values, least)

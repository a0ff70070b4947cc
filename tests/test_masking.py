"""Masking at its place of work: bytes that are +0.0, gradients that do not pass, norms that do not count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lth_scale.config import Hardware, Train
from lth_scale.masks import Mask
from lth_scale.shards import LocalShard, ReplicatedShards, Shards
from lth_scale.training import averages, masking
from lth_scale.training.masking import Masking
from lth_scale.training.module import prepared_model

FORMS = ["integers", "bool"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -1e-40, 1e30, -3.5, 2.0]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the mask is held: as wide as the weights, or as for large models."""
    if request.param == "bool":
        monkeypatch.setattr(masking, "SMALL", 0)
    return str(request.param)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 9, 7)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.conv(images).relu().flatten(1))
        return logits


def net(dtype: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().to(dtype).to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def some_mask(model: nn.Module) -> Mask:
    generator = torch.Generator().manual_seed(3)
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    return Mask({n: torch.rand(p.shape, generator=generator) < 0.3 for n, p in weights.items()})


def octets(tensor: torch.Tensor) -> torch.Tensor:
    """[..., bytes of a number], in the order of the places."""
    plain = tensor.detach().contiguous()
    return plain.view(torch.uint8).reshape(*plain.shape, plain.element_size())


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(octets(one), octets(other))


def clean(tensor: torch.Tensor, kept: torch.Tensor) -> bool:
    """Whether all that is dropped is +0.0, byte for byte."""
    return not octets(tensor)[~kept].any()


# the mask itself


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropped_places_are_plus_zero_and_kept_ones_untouched(
    dtype: torch.dtype, layout: torch.memory_format, form: str
) -> None:
    """Also where a gradient is laid out otherwise than its weights, and whatever the number was."""
    model = net(dtype, layout)
    mask, generator = some_mask(model), torch.Generator().manual_seed(1)
    filled = {}
    for name, parameter in model.named_parameters():
        values = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), parameter.shape, generator=generator)].to(dtype)
        filled[name] = values
        parameter.data.copy_(values)
        parameter.grad = values.clone().contiguous()
    work = Masking(ReplicatedShards(model, []), mask)
    work.gradients()
    work.weights()
    for name, parameter in model.named_parameters():
        kept = mask[name] if name in mask else torch.ones(parameter.shape, dtype=torch.bool)
        assert parameter.grad is not None
        for tensor in (parameter, parameter.grad):
            assert clean(tensor, kept)
            assert torch.equal(octets(tensor)[kept], octets(filled[name])[kept])
        assert kept.all() or not clean(filled[name] * kept, kept), "a product leaves -0.0 and NaN"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mask_at_work_takes_a_byte_a_weight_once_models_are_large(dtype: torch.dtype, form: str) -> None:
    model = net(dtype)
    mask = some_mask(model)
    taken = sum(work.nbytes for work in Masking(ReplicatedShards(model, []), mask)._masks.values())
    assert taken == mask.numel * (dtype.itemsize if form == "integers" else 1)


class Cut(Shards):
    """A part of one parameter, as some rank holds it; and nothing of another."""

    def __init__(self, whole: torch.Tensor, start: int, stop: int) -> None:
        super().__init__(nn.Module(), [])
        part = whole.reshape(-1)[start:stop].clone()
        self.gradient = part.clone()
        self._local = [
            LocalShard("there", part, start, tuple(whole.shape)),
            LocalShard("elsewhere", whole.new_empty(0), 0, tuple(whole.shape)),
        ]

    def local(self) -> Sequence[LocalShard]:
        return self._local

    def gradients(self) -> dict[str, torch.Tensor]:
        return {"there": self.gradient}

    def state(self, shard: LocalShard) -> dict[str, torch.Tensor]:
        return {}

    def allocate(self, entries: Mapping[str, Mapping[str, torch.Tensor | torch.dtype]]) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(("start", "stop"), [(0, 13), (13, 14), (5, 77), (64, 91)])
def test_a_part_is_masked_by_its_own_range(start: int, stop: int, form: str) -> None:
    generator = torch.Generator().manual_seed(2)
    whole, kept = -torch.rand(7, 13, generator=generator), torch.rand(7, 13, generator=generator) < 0.5
    shards = Cut(whole, start, stop)
    work = Masking(shards, Mask({"there": kept, "elsewhere": kept}))
    expected = int((~kept).reshape(-1)[start:stop].sum())
    assert work.revived() == ({"there": expected} if expected else {})
    work.gradients()
    work.weights()
    assert work.revived() == {}
    for found in (shards.local()[0].weights, shards.gradient):
        assert same(found, whole.where(kept, 0.0).reshape(-1)[start:stop])


# in front of an optimizer and behind it

OPTIMIZERS: dict[str, Callable[[Any, bool], Optimizer]] = {
    "sgd": lambda groups, fused: torch.optim.SGD(groups, lr=0.05, momentum=0.9, fused=fused),
    "nesterov": lambda groups, fused: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, fused=fused),
    "adam": lambda groups, fused: torch.optim.Adam(groups, lr=0.01, fused=fused),
    "adamw": lambda groups, fused: torch.optim.AdamW(groups, lr=0.01, fused=fused),
}
POISONS = {"inf": float("inf"), "nan": float("nan"), "enormous": 1e30, "none": 0.0}
CLIP = 0.1


def trained(
    optimizer: str, fused: bool, poison: float, work: Sequence[str] = ("gradients", "weights")
) -> tuple[Mask, dict[str, list[torch.Tensor]], int]:
    """Mask, (weights, *state) by parameter after five clipped steps, and what the zero proof finds."""
    model = net()
    named = list(model.named_parameters())
    groups = [
        {"params": [p for _, p in named if (p.ndim > 1) == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    stepper, mask = OPTIMIZERS[optimizer](groups, fused), some_mask(model)
    masked = Masking(ReplicatedShards(model, [stepper]), mask)
    masked.weights()
    if "weights" in work:
        masked.install()
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        stepper.zero_grad()
        images, targets = torch.randn(16, 3, 5, 5, generator=generator), torch.randint(7, (16,), generator=generator)
        nn.functional.cross_entropy(model(images), targets).backward()
        for name, parameter in named:
            if name in mask and parameter.grad is not None:
                parameter.grad[~mask[name]] = poison
        if "gradients" in work:
            masked.gradients()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        stepper.step()
    found = {n: [p, *(t for t in stepper.state[p].values() if t.shape == p.shape)] for n, p in named}
    return mask, found, sum(masked.revived().values())


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_gradients_reach_neither_weights_nor_state_nor_the_norm(
    optimizer: str, fused: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Infinite, NaN or enormous at pruned places, training is bit for bit as without them."""
    mask, expected, _ = trained(optimizer, fused, POISONS["none"])
    start = dict(net().named_parameters())
    for poison in POISONS.values():
        _, found, revived = trained(optimizer, fused, poison)
        assert revived == 0
        for name, tensors in found.items():
            assert len(tensors) >= 2 and all(map(same, tensors, expected[name]))
            assert name not in mask or all(clean(tensor, mask[name]) for tensor in tensors)
            assert not same(tensors[0], start[name]), "it trained"
    # The controls: a norm that counts an enormous one; a product instead of the AND; weights without gradients.
    _, found, _ = trained(optimizer, fused, POISONS["enormous"], work=["weights"])
    assert not any(same(tensors[-1], expected[name][-1]) for name, tensors in found.items())
    monkeypatch.setattr(masking, "_apply", lambda tensor, work: tensor.mul_((work == 0) if form == "bool" else -work))
    _, found, revived = trained(optimizer, fused, POISONS["inf"])
    assert revived > 0 and any(not clean(tensors[-1], mask[name]) for name, tensors in found.items() if name in mask)


def test_an_enormous_pruned_gradient_would_stop_training() -> None:
    """The control of the norm: it counts what is not masked, and scales everything else to nothing."""

    def moved(work: Sequence[str]) -> float:
        bias = trained("sgd", False, POISONS["enormous"], work)[1]["head.bias"][0]
        return float((bias.detach() - net().head.bias.detach()).abs().max())

    assert moved(["weights"]) < 1e-20 < 1e-4 < moved(["gradients", "weights"])


def test_the_zero_proof_counts_every_number_that_is_not_plus_zero(form: str) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    shards, mask = ReplicatedShards(model, [optimizer]), some_mask(model)
    work = Masking(shards, mask)
    shards.allocate({s.name: {"exp_avg": torch.float32, "step": torch.tensor(2.0)} for s in shards.local()})
    averages.start_averages(shards)
    work.weights()
    for shard in shards.local():
        shards.averages[shard.name].copy_(shard.weights)
    assert work.revived() == {}
    moment = optimizer.state[model.head.weight]["exp_avg"]
    held = [model.head.weight.data, moment, shards.averages["head.weight"]]
    places = (~mask["head.weight"]).reshape(-1).nonzero().reshape(-1)
    for number, tensor in enumerate(held):
        for value in (-0.0, 1e-44, -1.0):
            tensor.view(-1)[places[number]] = value
            assert work.revived() == {"head.weight": number + 1}
    model.conv.weight.data[~mask["conv.weight"]] = -0.0
    assert work.revived() == {"head.weight": 3, "conv.weight": int((~mask["conv.weight"]).sum())}
    work.weights()
    for tensor in held[1:]:
        tensor.zero_()
    assert work.revived() == {}
    moment[~mask["head.weight"]] = float("nan")
    assert work.revived() == {}, "a diverged network has NaN everywhere"
    model.head.weight.data[~mask["head.weight"]] = float("nan")
    assert sum(work.revived().values()) == int((~mask["head.weight"]).sum())


def test_every_optimizer_is_hooked_until_removed(form: str) -> None:
    model = net()
    mask = some_mask(model)
    steppers = [torch.optim.SGD(part.parameters(), lr=0.0) for part in (model.conv, model.head)]
    work = Masking(ReplicatedShards(model, steppers), mask)
    work.install()
    for stepper in steppers:
        for parameter in model.parameters():
            parameter.data.fill_(-1.0)
            parameter.grad = torch.ones_like(parameter)
        stepper.step()
        assert work.revived() == {}
    work.remove()
    model.head.weight.data.fill_(-1.0)
    steppers[1].step()
    assert work.revived() == {"head.weight": int((~mask["head.weight"]).sum())}


@pytest.mark.slow
def test_a_compiled_model_keeps_its_names() -> None:
    """Compiled in place it has its own; the control: wrapped, it has others, and shards show its own all the same."""
    model = net()
    names = [name for name, _ in model.named_parameters()]
    here = prepared_model(model, Train(), Hardware(compile=True))
    assert [name for name, _ in here.named_parameters()] == names
    wrapped = torch.compile(net())
    assert all(name.startswith("_orig_mod.") for name, _ in wrapped.named_parameters())
    shards = ReplicatedShards(wrapped, [])  # type: ignore[arg-type]
    assert [shard.name for shard in shards.local()] == names
    work = Masking(shards, some_mask(net()))
    work.weights()
    assert work.revived() == {} and set(work._masks) == {"conv.weight", "head.weight"}

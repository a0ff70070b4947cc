from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lth_scale import config
from lth_scale.models import build, connected, macs, macs_fixed, models, prunable

CIFAR = (3, 32, 32)


def make(name: str, shape: tuple[int, int, int] = CIFAR, **fields: object) -> nn.Module:
    return build(config.Model(name, **fields), shape, 10, 0)  # type: ignore[arg-type]


def ones(model: nn.Module) -> dict[str, torch.Tensor]:
    return {p.name: torch.ones(p.shape, dtype=torch.bool) for p in prunable(model)}


def empty(masks: Mapping[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(mask) if name in names else mask for name, mask in masks.items()}


def counted(model: nn.Module, shape: tuple[int, ...]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "name", [*models, "timm:resnet18", "timm:vit_tiny_patch16_224", "timm:beit_base_patch16_224", "timm:nf_resnet26"]
)
def test_macs_are_those_that_torch_counts(name: str) -> None:
    model = make(name, init="own").train()
    owned = macs(model, CIFAR)
    assert list(owned) == [p.name for p in prunable(model)] and all(owned.values())
    assert all(module.training for module in model.modules())
    assert 2 * (sum(owned.values()) + macs_fixed(model, CIFAR)) == counted(model, CIFAR)


def test_macs_by_hand() -> None:
    assert macs(make("lenet_300_100", (1, 28, 28)), (1, 28, 28)) == {
        "fc1.weight": 235_200,
        "fc2.weight": 30_000,
        "output.weight": 1_000,
    }
    assert macs(make("conv2"), CIFAR)["convolutions.0.weight"] == 32 * 32 * 1_728
    shortcuts = 16 * 16 * 512 + 8 * 8 * 2_048
    assert macs_fixed(make("resnet20"), CIFAR) == shortcuts and macs_fixed(make("conv2"), CIFAR) == 0


class Attention(nn.Module):
    """Torch's own attention: its fused weights are never applied by a module that a hook could see."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        x, _ = self.cross(x[:, :2], key=x[..., :4], value=x[..., :4])
        return self.head(x.mean(1))


def test_macs_of_torchs_attention() -> None:
    owned = macs(Attention(), (5, 8))
    assert owned == {
        "encoder.self_attn.in_proj_weight": 5 * 3 * 64,
        "encoder.self_attn.out_proj.weight": 5 * 64,
        "encoder.linear1.weight": 5 * 128,
        "encoder.linear2.weight": 5 * 128,
        "cross.q_proj_weight": 2 * 64,
        "cross.k_proj_weight": 5 * 32,
        "cross.v_proj_weight": 5 * 32,
        "cross.out_proj.weight": 2 * 64,
        "head.weight": 24,
    }


def test_a_tied_layer_owns_the_macs_of_all_its_uses() -> None:
    layer = nn.Linear(4, 4)
    assert macs(nn.Sequential(layer, nn.ReLU(), layer), (4,)) == {"0.weight": 32}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *models,
        "timm:vit_tiny_patch16_224",
        "timm:nf_resnet26",
        "timm:mobilenetv3_small_100",
        "timm:eva02_tiny_patch14_224",
    ],
)
def test_connected_needs_input_and_output(name: str) -> None:
    model = make(name, init="own")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    masks, kept = ones(model), prunable(model)
    assert connected(model, masks, CIFAR)
    assert not connected(model, empty(masks, kept[0].name), CIFAR)
    assert not connected(model, empty(masks, kept[-1].name), CIFAR)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def one(shape: tuple[int, ...], *index: int) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[index] = True
    return mask


def test_surviving_weights_without_a_path_are_disconnected() -> None:
    model = make("lenet_300_100", (1, 8, 8), hidden=(6, 5))
    masks = {"fc1.weight": one((6, 64), 2, 7), "fc2.weight": one((5, 6), 4, 2), "output.weight": one((10, 5), 9, 4)}
    assert connected(model, masks, (1, 8, 8))
    for name, elsewhere in (("fc2.weight", one((5, 6), 4, 1)), ("output.weight", one((10, 5), 9, 3))):
        assert not connected(model, {**masks, name: elsewhere}, (1, 8, 8))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), density=st.floats(0.02, 0.6))
def test_connected_agrees_with_a_search_over_units(seed: int, density: float) -> None:
    model = make("lenet_300_100", (1, 2, 2), hidden=(6, 5, 4))
    generator = torch.Generator().manual_seed(seed)
    masks = {p.name: torch.rand(p.shape, generator=generator) < density for p in prunable(model)}
    reached = torch.ones(4, dtype=torch.bool)
    for mask in masks.values():
        reached = (mask & reached).any(1)
    assert connected(model, masks, (1, 2, 2)) == bool(reached.any())


def test_a_resnet_stays_connected_through_its_shortcuts() -> None:
    model = make("resnet20")
    masks = ones(model)
    inner = [name for name in masks if name.startswith("blocks")]
    assert connected(model, empty(masks, *inner), CIFAR)
    assert not connected(model, empty(masks, "conv1.weight"), CIFAR)
    plain = make("vgg11")
    assert not connected(plain, empty(ones(plain), "stages.2.0.weight"), CIFAR)


def test_one_path_through_a_deep_network_is_found() -> None:
    model = make("vgg19")
    masks = {p.name: one(p.shape, *([0, 0] if p.kind == "output" else [0, 0, 1, 1])) for p in prunable(model)}
    assert connected(model, masks, CIFAR)
    last = prunable(model)[-2]
    assert not connected(model, {**masks, last.name: one(last.shape, 0, 1, 1, 1)}, CIFAR)


def test_torchs_attention_passes_values_only() -> None:
    model = Attention()
    masks = ones(model)
    queries = masks["encoder.self_attn.in_proj_weight"].clone()
    queries[:16] = False
    assert connected(model, {**masks, "encoder.self_attn.in_proj_weight": queries}, (5, 8))
    assert connected(model, empty(masks, "encoder.self_attn.out_proj.weight"), (5, 8))  # the residual stream
    assert not connected(model, empty(masks, "cross.v_proj_weight"), (5, 8))

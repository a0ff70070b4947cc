from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lth_scale import config
from lth_scale.errors import UserError
from lth_scale.models import build, decay_groups, has_batchnorm, models, prunable, unprunable

MNIST, CIFAR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)
SMALL = ["lenet_300_100", "conv2", "conv4", "conv6", "resnet8", "resnet20", "vgg11"]


def make(
    name: str, shape: tuple[int, int, int] = CIFAR, classes: int = 10, seed: int = 0, **fields: object
) -> nn.Module:
    return build(config.Model(name, **fields), shape, classes, seed)  # type: ignore[arg-type]


def weights(model: nn.Module) -> int:
    return sum(tensor.numel for tensor in prunable(model))


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("lenet_300_100", MNIST, 266_200),
        ("conv2", CIFAR, 4_300_992),
        ("conv4", CIFAR, 2_425_024),
        ("conv6", CIFAR, 2_261_184),
        ("vgg19", CIFAR, 20_024_000),
    ],
)
def test_weights_of_the_lottery_ticket_paper(name: str, shape: tuple[int, int, int], expected: int) -> None:
    assert weights(make(name, shape)) == expected


def test_resnet20_has_the_papers_274k_of_which_shortcuts_and_output_are_apart() -> None:
    model = make("resnet20")
    shortcuts = {p.name: p.numel for p in unprunable(model) if "shortcut" in p.reason}
    assert len(shortcuts) == 2 and sum(shortcuts.values()) == 2_560
    assert [p.numel for p in prunable(model) if p.kind == "output"] == [640]
    assert sum(p.numel for p in prunable(model) if p.kind == "conv") + 2_560 == 270_256  # "270K" convolution weights
    assert sum(p.numel() for p in model.parameters()) == 272_474
    # "274K" counts the running means and variances too
    assert sum(x.numel() for name, x in model.state_dict().items() if "num_batches" not in name) == 274_042


@pytest.mark.parametrize(("name", "total"), [("timm:resnet50", 25_557_032), ("timm:vit_small_patch16_224", 22_050_664)])
def test_imagenet_models_have_their_published_sizes(name: str, total: int) -> None:
    model = make(name, (3, 224, 224), 1000, init="own")
    assert sum(p.numel() for p in model.parameters()) == total
    assert [p.shape[0] for p in prunable(model) if p.kind == "output"] == [1000]


def test_vit_qkv_is_prunable_and_tokens_are_not() -> None:
    model = make("timm:vit_tiny_patch16_224", init="own")
    names = {p.name for p in prunable(model)}
    assert {f"blocks.{block}.attn.qkv.weight" for block in range(12)} <= names
    reasons = {p.name: p.reason for p in unprunable(model)}
    assert reasons["cls_token"] == "class or register token"
    assert reasons["pos_embed"] == "position embedding"
    assert reasons["norm.weight"] == "norm layer"


@pytest.mark.parametrize("name", [*models, "timm:vit_tiny_patch16_224", "timm:convnextv2_atto"])
def test_partition_kinds_and_decay_of_every_model(name: str) -> None:
    model = make(name, init="own")
    parameters = {key: value for key, value in model.named_parameters()}
    kept, rest = prunable(model), unprunable(model)
    order = list(parameters)
    assert [p.name for p in kept] == [key for key in order if key not in {p.name for p in rest}]
    assert sorted([p.name for p in kept] + [p.name for p in rest]) == sorted(order)
    assert all(p.shape == tuple(parameters[p.name].shape) and math.prod(p.shape) == p.numel for p in kept)
    assert all(p.numel == parameters[p.name].numel() and p.reason for p in rest)
    assert [p.name for p in kept if p.kind == "output"] == [kept[-1].name]
    decayed, undecayed = decay_groups(model)
    assert sorted([*decayed, *undecayed]) == sorted(order)
    assert {p.name for p in kept} <= set(decayed)
    assert all(parameters[key].dim() > 1 for key in decayed)
    assert has_batchnorm(model) == any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", list(models))
def test_forward_on_cifar_shapes(name: str) -> None:
    assert make(name, init="own")(torch.rand(2, *CIFAR)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_forward_on_mnist_shapes(name: str) -> None:
    assert make(name, MNIST, 7, init="own")(torch.rand(2, *MNIST)).shape == (2, 7)


@pytest.mark.parametrize("name", ["lenet_300_100", "conv2", "conv4", "conv6", "resnet20"])
def test_forward_on_digits(name: str) -> None:
    assert make(name, DIGITS, init="own")(torch.rand(2, *DIGITS)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "shape"), [("vgg16", DIGITS), ("conv6", (1, 6, 8)), ("timm:vit_tiny_patch16_224", DIGITS)]
)
def test_too_small_images_are_refused(name: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(UserError, match=rf"model.name='{name}'.*{'x'.join(map(str, shape))}"):
        make(name, shape)


def test_unknown_names_are_refused_with_near_ones() -> None:
    with pytest.raises(UserError, match=r"model.name='lenet_300' is not known \(did you mean 'lenet_300_100'"):
        make("lenet_300")
    with pytest.raises(UserError, match=r"timm:resnet51.*near: .*resnet51q"):
        make("timm:resnet51")
    with pytest.raises(UserError, match=r"timm:hf-hub:"):
        make("timm:hf-hub:someone/model")


def test_sizes_are_configurable() -> None:
    assert weights(make("lenet_300_100", DIGITS, hidden=(20, 30, 40))) == 64 * 20 + 20 * 30 + 30 * 40 + 40 * 10
    assert weights(make("lenet_300_100", DIGITS, hidden=())) == 640
    assert [p.name for p in prunable(make("lenet_300_100"))] == ["fc1.weight", "fc2.weight", "output.weight"]
    assert prunable(make("resnet8", width=4))[-1].shape == (10, 16)
    with pytest.raises(UserError, match=r"model.width=4.*conv2"):
        make("conv2", width=4)


@pytest.mark.parametrize("init", ["glorot_normal", "kaiming_normal", "own"])
@pytest.mark.parametrize("name", ["lenet_300_100", "resnet8", "timm:vit_tiny_patch16_224"])
def test_build_is_a_pure_function_of_the_seed(name: str, init: str) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        return make(name, seed=seed, init=init).state_dict()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = state(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = state(5), state(6)
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [p.name for p in prunable(make(name))]
    assert not any(torch.equal(first[key], other[key]) for key in drawn)


@pytest.mark.parametrize("name", ["conv4", "resnet20"])
@pytest.mark.parametrize("init", ["glorot_normal", "kaiming_normal"])
def test_initialisation_has_its_published_spread(name: str, init: str) -> None:
    model = make(name, init=init)
    for key, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert torch.all(parameter == (1 if "weight" in key else 0)), key  # gamma 1; beta and biases 0
        elif parameter.numel() > 5000:
            fan_in, fan_out = parameter[0].numel(), parameter.numel() // parameter.shape[1]
            expected = math.sqrt(2 / (fan_in + fan_out if init == "glorot_normal" else fan_in))
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), key
            assert abs(parameter.mean().item()) < 5 * expected / math.sqrt(parameter.numel())


def test_own_initialisation_is_torchs_and_others_leave_tokens_alone() -> None:
    own = make("lenet_300_100", init="own")
    torch.manual_seed(0)
    assert torch.equal(own.get_parameter("fc1.weight"), nn.Linear(3072, 300).weight)
    vit, kaiming = (make("timm:vit_tiny_patch16_224", init=init) for init in ("own", "kaiming_normal"))
    assert torch.equal(vit.get_parameter("pos_embed"), kaiming.get_parameter("pos_embed"))
    assert not torch.equal(vit.get_parameter("head.weight"), kaiming.get_parameter("head.weight"))


class Foreign(nn.Module):
    """A language model of someone else: attention, an embedding tied to the head, a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
        self.first = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.first.weight
        self.up = nn.ConvTranspose2d(2, 3, 2)
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embed.weight


def test_fused_attention_is_prunable_and_tied_weights_are_named_once() -> None:
    model = Foreign()
    assert [(p.name, p.kind) for p in prunable(model)] == [
        ("attention.in_proj_weight", "fc"),
        ("attention.out_proj.weight", "fc"),
        ("cross.q_proj_weight", "fc"),
        ("cross.k_proj_weight", "fc"),
        ("cross.v_proj_weight", "fc"),
        ("cross.out_proj.weight", "fc"),
        ("first.weight", "fc"),
    ]
    reasons = {p.name: p.reason for p in unprunable(model)}
    assert reasons["embed.weight"] == "embedding" and "head.weight" not in reasons
    assert {reasons[name] for name in reasons if "bias" in name} == {"bias"}
    assert "ConvTranspose2d" in reasons["up.weight"]
    assert "up.weight" in decay_groups(model)[0] and "embed.weight" in decay_groups(model)[1]


def test_a_wrapped_model_keeps_its_output_and_shortcuts() -> None:
    wrapped = nn.ModuleDict({"network": make("resnet8")})
    assert [p.name for p in prunable(wrapped) if p.kind == "output"] == ["network.output.weight"]
    assert sum("shortcut" in p.reason for p in unprunable(wrapped)) == 2

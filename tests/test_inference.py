"""Sparse inference: the outputs of the network itself, from the surviving weights alone, at any batch size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from lth_scale import config, models
from lth_scale.errors import UserError
from lth_scale.inference import Sparse, compiled, kernel
from lth_scale.inference.running import LANES

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ("lenet_300_100", "resnet8")
FOLLOWED = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in models.models
    if not name.startswith("vit")
]
SHAPE, ODD = (3, 16, 16), (3, 13, 11)


def sparse_network(name: str, shape: tuple[int, int, int], density: float = 0.1) -> nn.Module:
    """Random masks, and BatchNorm that has seen something."""
    torch.manual_seed(0)
    model = models.build(config.Model(name=name), shape, 10, 0).eval()
    return pruned(model, density)


@torch.no_grad()
def pruned(model: nn.Module, density: float) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight *= (torch.rand_like(module.weight) < density) / density**0.5  # outputs of the usual size
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "running_var"):
                getattr(module, name).uniform_(0.5, 2)
            for name in ("bias", "running_mean"):
                getattr(module, name).normal_(0, 0.3)
    return model


def images(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, *shape)).astype(np.float32)


@torch.no_grad()
def assert_same(run: Sparse, model: nn.Module, shape: tuple[int, ...], counts: tuple[int, ...]) -> None:
    for count in counts:
        given = images(count, shape)
        expected = model(torch.from_numpy(given)).numpy()
        np.testing.assert_allclose(run(given), expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("name", FOLLOWED)
def test_logits_are_those_of_the_network(name: str) -> None:
    """The control: one surviving weight less, and they are not."""
    shape = (3, 32, 32) if name.startswith("vgg") else SHAPE
    model = sparse_network(name, shape)
    run = compiled(model, shape)
    assert_same(run, model, shape, (1, 5, 35))
    with torch.no_grad():
        weights = model.get_parameter("output.weight").view(-1)
        weights[weights.abs().argmax()] = 0
    with pytest.raises(AssertionError):
        assert_same(run, model, shape, (5,))


def test_groups_of_images_of_any_size() -> None:
    model = sparse_network("lenet_300_100", SHAPE)
    assert_same(compiled(model, SHAPE), model, SHAPE, (1, 3, 4, 15, 16, 17, 31, 64, 67, 150))


def test_only_surviving_weights_are_stored() -> None:
    model = sparse_network("lenet_300_100", SHAPE, 0.036)
    expected = sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1)
    assert compiled(model, SHAPE).network.nonzeros == expected


def net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4)).eval()
    model(torch.zeros(1, *ODD))
    return pruned(model, 0.5)


CASES: dict[str, Callable[[], list[nn.Module]]] = {
    "stride": lambda: [nn.Conv2d(3, 5, 3, stride=2, padding=1)],
    "stride of 3 by 2": lambda: [nn.Conv2d(3, 5, (2, 4), stride=(3, 2), padding=(0, 2))],
    "dilation": lambda: [nn.Conv2d(3, 5, 3, dilation=(2, 3), padding=2)],
    "groups": lambda: [nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2, stride=2)],
    "1x1 in the plane": lambda: [nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 7, 1), nn.ReLU(), nn.Conv2d(7, 2, 1)],
    "batchnorm before": lambda: [nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3)],
    "batchnorm after relu": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()],
    "max-pool": lambda: [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)],
    "padded max-pool": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)],
    "average pools": lambda: [nn.AvgPool2d(2), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1)],
    "in place": lambda: [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Conv2d(4, 4, 3, padding=1)],
}


@pytest.mark.parametrize("case", CASES)
def test_layers(case: str) -> None:
    """Against torch, with vectors over places, over images and over both."""
    model = net(*CASES[case]())
    run = compiled(model, ODD)
    every = run.lanes
    for most in (1, 4, LANES):
        run.lanes = [n for n in every if n <= most]
        assert_same(run, model, ODD, (16, 16))  # twice: borders are still 0, and what was there is gone


class Branches(nn.Module):
    """A value that two read, a sum of two sums, and one of what lies in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3, 3, 3, padding=n, dilation=max(1, n)) for n in (1, 1, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.one(x)
        kept = inner + x
        both = self.two(kept.relu()) + self.three(inner.relu())
        return (both + kept).relu().mean((2, 3)) + (kept + kept).mean((2, 3))


class Lambda(nn.Module):
    """One function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def test_a_value_and_itself() -> None:
    layer = pruned(nn.Conv2d(3, 4, 3), 0.5)
    model = nn.Sequential(layer, Lambda(lambda x: x + x)).eval()
    assert_same(compiled(model, ODD), model.append(nn.Flatten()), ODD, (1, 20))


def test_what_several_read_is_kept_apart() -> None:
    torch.manual_seed(2)
    model = pruned(Branches().eval(), 0.6)
    assert_same(compiled(model, SHAPE), model, SHAPE, (1, 20))


def test_no_value_is_invented_for_what_is_not_a_number() -> None:
    model = sparse_network("lenet_300_100", SHAPE, 1.0)
    given = images(5, SHAPE)
    given[2, 0, 3, 3] = np.nan
    assert np.isnan(compiled(model, SHAPE)(given)).any(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("together", [1, kernel.TOGETHER])
@pytest.mark.parametrize("width", kernel.WIDTHS)
def test_every_loop_is_compiled_and_sums(width: int, together: int) -> None:
    """Two rows, of which one has no weight, at so many positions; the control is the other function."""
    if together > 1 and width > kernel.NARROW:
        assert ("sum", width, together) not in kernel.kernels()
        return
    inputs, out = images(3 * together, (width,)), np.zeros((2, together, width), np.float32)
    starts = [number * width for number in range(together)]
    arrays = [np.array(held, np.int32) for held in (starts, starts, [0, 2, 2], [0, 2 * together * width])]
    arrays += [np.array(held, np.float32) for held in ([2, -3], [0.5, -1])]
    ends = (inputs.ctypes.data, None, out.ctypes.data, -np.inf)
    call = (together, 2, together * width, *(held.ctypes.data for held in arrays), *ends)
    first, _, last = inputs.reshape(3, together, width)
    kernel.kernels()["sum", width, together](*call)
    np.testing.assert_allclose(out, [0.5 + 2 * first - 3 * last, np.full_like(first, -1)], rtol=1e-4, atol=1e-5)
    kernel.kernels()["max", width, together](*call)
    np.testing.assert_array_equal(out[0], np.maximum(0.5, np.maximum(first, last)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()), "knows no sigmoid, only conv2d"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding="same")), "knows no padding='same'"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, 1)), "padded max-pools only after a ReLU"),
        (lambda: nn.Sequential(nn.AvgPool2d(3, 2, 1)), "average pools without padding only"),
        (lambda: nn.Sequential(nn.Linear(16, 3)), "linear layers to read all values"),
        (lambda: nn.Sequential(nn.AvgPool2d(3, 2, ceil_mode=True)), r"avg_pool2d that makes \(3, 8, 8\)"),
        (lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Flatten(1, 2)), "knows no view that makes"),
        (lambda: Lambda(lambda x: x + x.mean((2, 3), keepdim=True)), "knows no addition of"),
        (lambda: Lambda(lambda x: x + 1), "knows no add as add uses it"),
    ],
)
def test_what_it_does_not_know_is_refused(model: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compiled(model().eval(), SHAPE)


def test_without_llvmlite_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(kernel, "import_module", missing)
    kernel.kernels.cache_clear()
    with pytest.raises(UserError, match=r"llvmlite: pip install 'lth_scale\[export\]'"):
        compiled(sparse_network("lenet_300_100", SHAPE), SHAPE)
    kernel.kernels.cache_clear()

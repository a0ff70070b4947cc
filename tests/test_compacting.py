"""Dead units are gone and the function is the same, their constants folded where that is exact."""

from __future__ import annotations

import pytest
import torch
from test_channels import CLASSES, SHAPE, close, images, make
from torch import nn

from lth_scale import config
from lth_scale.models import building, models, prunable
from lth_scale.models.channels import groups
from lth_scale.models.compacting import compacted

OTHERS = ("timm:densenet121", "timm:convnext_atto")  # concatenation, other norm layers: most units stay


def sparse(model: nn.Module, density: float, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """Random weights gone, and with them some units whole: of the first group, all inputs of one and outputs of one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in prunable(model):
            weight = model.get_parameter(tensor.name)
            weight.mul_(torch.rand(weight.shape, generator=generator) < density)
        first = groups(model, shape, strict=False)[0]
        for axis in first.producers:
            model.get_parameter(axis.name).movedim(axis.dim, 0)[: axis.width] = 0
        for axis in first.consumers:
            model.get_parameter(axis.name).movedim(axis.dim, 0)[axis.width : 2 * axis.width] = 0
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*models, *OTHERS])
def test_a_compacted_network_computes_the_same(name: str) -> None:
    shape = (3, 32, 32) if name in OTHERS else SHAPE
    made = building.build(config.Model(name), shape, CLASSES, 0).double() if name in OTHERS else make(name)
    model = sparse(made, 0.05, shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = compacted(model, shape)
    assert sum(found.after) < sum(found.before) and len(found.after) == len(found.before)
    assert sum(p.numel() for p in found.model.parameters()) < sum(p.numel() for p in model.parameters())
    given = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert close(found.model(given), model(given))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert compacted(found.model, shape).after == found.after, "nothing is left to do"


def chain(padding: int, bias: float) -> nn.Sequential:
    """Its first convolution's second channel has no inputs, and its bias makes it a constant."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=padding, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, CLASSES)),
    ).double()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = bias
        model[7].weight[2] = 0
        model[7].bias[2] = 0.5
    return model.eval()


@pytest.mark.parametrize(("padding", "bias", "left"), [(0, 0.7, 3), (1, 0.7, 4), (1, -0.7, 3)])
def test_a_constant_is_folded_only_where_that_is_exact(padding: int, bias: float, left: int) -> None:
    """Padding is 0 at the border, where the constant is not: such a unit stays."""
    model = chain(padding, bias)
    found = compacted(model, SHAPE)
    assert found.before == (4, 4, 6) and found.after == (left, 4, 5)
    with torch.no_grad():
        assert close(found.model(images()), model(images()))
        model[9].weight[:, 2] = 0
        assert not close(found.model(images()), model(images())), "the control: its constant matters"


def test_units_die_one_after_the_other() -> None:
    """What only a dead unit reads is dead too."""
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(768, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        model[5].weight[:, 3] = 0
        model[3].weight[:3, 4] = 0
    found = compacted(model.eval(), SHAPE)
    assert found.before == (5, 4) and found.after == (4, 3)
    with torch.no_grad():
        assert torch.allclose(found.model(images().float()), model(images().float()), atol=1e-6)


def test_a_network_of_dead_units_alone_keeps_one_of_each() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 5), nn.ReLU(), nn.Linear(5, 4))
    with torch.no_grad():
        for parameter in (model[1].weight, model[3].weight):
            parameter.zero_()
    found = compacted(model.eval(), SHAPE)
    assert found.after == (1,)
    with torch.no_grad():
        assert torch.equal(found.model(images().float()), model(images().float()))

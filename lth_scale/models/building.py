"""From a model's config to an initialised network."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from lth_scale import config
from lth_scale.errors import UserError
from lth_scale.models.base import Shape, models
from lth_scale.models.parameters import is_weight

TIMM = "timm:"


def build(model: config.Model, shape: Shape, classes: int, seed: int) -> nn.Module:
    """The network, float32 on CPU, as a pure function of its arguments; the global random state is left untouched.

    Args:
        model: its config; ``model.init`` draws the weights of convolutions, linear layers and attention projections
            and zeroes their biases. Norm layers, embeddings, position and class tokens keep the model's own start.
        shape: (channels, height, width) of one image.
        classes: logits.
        seed: of the initialisation, already derived from the stream ``init``.

    Raises:
        UserError: unknown model, images too small for it, or ``model.width`` on a model that has none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _construct(model, shape, classes)
    if model.init != "own":
        _initialise(network, model.init, torch.Generator().manual_seed(seed))
    return network


def _construct(model: config.Model, shape: Shape, classes: int) -> nn.Module:
    if model.width and not model.name.startswith("resnet"):
        raise UserError(
            f"model.width={model.width} is only for the resnet models; model.name={model.name!r} takes none"
        )
    if model.name.startswith(TIMM):
        return _timm(model.name, shape, classes)
    return models[model.name](model, shape, classes)


@torch.no_grad()
def _initialise(network: nn.Module, init: str, generator: torch.Generator) -> None:
    """Draw weights in parameter order, so that their values depend on nothing but shapes and seed."""
    owner = {id(p): (m, attribute) for m in network.modules() for attribute, p in m._parameters.items()}
    for parameter in network.parameters():
        module, attribute = owner[id(parameter)]
        if is_weight(module, attribute):
            _draw(parameter, init, generator)
        elif attribute.endswith("bias") and any(is_weight(module, other) for other in module._parameters):
            parameter.zero_()


def _draw(weight: torch.Tensor, init: str, generator: torch.Generator) -> None:
    if init == "glorot_normal":
        nn.init.xavier_normal_(weight, generator=generator)
    else:
        nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu", generator=generator)


def _timm(name: str, shape: Shape, classes: int) -> nn.Module:
    """A timm model, untrained, for these images; UserError if timm has none of that name or it cannot take them."""
    import timm  # slow to import, and only needed here

    known = timm.list_models()
    if (plain := name.removeprefix(TIMM)) not in known:
        near = difflib.get_close_matches(plain, known, n=5) or known[:5]
        raise UserError(f"model.name={name!r} is not a model of timm {timm.__version__}; near: {', '.join(near)}")
    try:
        return _timm_network(plain, shape, classes)
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
        size, reason = "x".join(map(str, shape)), (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.name={name!r} cannot take images of {size} (channels x height x width): {reason}"
        ) from None


def _timm_network(plain: str, shape: Shape, classes: int) -> nn.Module:
    """The model, tried on one blank image, because timm's models do not say which sizes they take."""
    import timm

    settings: dict[str, Any] = {"pretrained": False, "num_classes": classes, "in_chans": shape[0]}
    try:
        network = timm.create_model(plain, **settings, img_size=shape[1:])
    except TypeError as error:
        # transformers must be told the image's size; convolutional networks refuse to be
        if "img_size" not in str(error):
            raise
        network = timm.create_model(plain, **settings)
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    return network.train()

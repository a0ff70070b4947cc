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
from lth_scale.streams import torch_seeded

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
        UserError: unknown model, images too small for it, or ``model.width`` or ``model.drop_path`` on a model that
            has none.
    """
    with torch_seeded(seed):
        network = _construct(model, shape, classes)
    if model.init != "own":
        _initialise(network, model.init, torch.Generator().manual_seed(seed))
    return network


def skeleton(model: config.Model, shape: Shape, classes: int) -> nn.Module:
    """The same network on the device ``meta``: names, shapes and layers, without values and memory; raises as build."""
    with torch.device("meta"):
        return _construct(model, shape, classes)


def redraw(network: nn.Module, init: str, seed: int) -> None:
    """Draw all values of a network anew, for the sizes that its layers have, as :func:`build` would."""
    with torch_seeded(seed):
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    if init != "own":
        _initialise(network, init, torch.Generator().manual_seed(seed))


def _construct(model: config.Model, shape: Shape, classes: int) -> nn.Module:
    if model.width and not model.name.startswith("resnet"):
        raise UserError(
            f"model.width={model.width} is only for the resnet models; model.name={model.name!r} takes none"
        )
    if model.name.startswith(TIMM):
        return _timm(model, shape, classes)
    if model.drop_path:
        raise _no_drop_path(model)
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


def _no_drop_path(model: config.Model) -> UserError:
    return UserError(
        f"model.drop_path={model.drop_path} is only for timm's models with residual branches to leave out; "
        f"model.name={model.name!r} takes none"
    )


def _timm(model: config.Model, shape: Shape, classes: int) -> nn.Module:
    """A timm model, untrained, for these images; UserError if timm has none of that name or it cannot take them."""
    import timm  # slow to import, and only needed here

    name, known = model.name, timm.list_models()
    if (plain := name.removeprefix(TIMM)) not in known:
        near = difflib.get_close_matches(plain, known, n=5) or known[:5]
        raise UserError(f"model.name={name!r} is not a model of timm {timm.__version__}; near: {', '.join(near)}")
    try:
        return _timm_network(plain, model, shape, classes)
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
        size, reason = "x".join(map(str, shape)), (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.name={name!r} cannot take images of {size} (channels x height x width): {reason}"
        ) from None


def _timm_network(plain: str, model: config.Model, shape: Shape, classes: int) -> nn.Module:
    """The model, tried on one blank image, because timm's models do not say which sizes they take."""
    settings: dict[str, Any] = {"num_classes": classes, "in_chans": shape[0]}
    if model.drop_path:
        settings["drop_path_rate"] = model.drop_path
    try:
        # transformers must be told the image's size; convolutional networks refuse to be
        network = _created(plain, settings | {"img_size": shape[1:]}, "img_size") or _created(plain, settings)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise _no_drop_path(model) from None
    assert network is not None
    if model.drop_path and not any(type(part).__name__ == "DropPath" for part in network.modules()):
        raise _no_drop_path(model)  # it took the rate, and did nothing with it
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    return network.train()


def _created(plain: str, settings: dict[str, Any], refused: str = "") -> nn.Module | None:
    """The untrained model, or None when it has no such setting as ``refused``."""
    import timm

    try:
        network: nn.Module = timm.create_model(plain, pretrained=False, **settings)
        return network
    except TypeError as error:
        if refused and refused in str(error):
            return None
        raise

"""The table of models, and what their constructors share."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lth_scale import config
from lth_scale.errors import UserError
from lth_scale.registry import Registry

Shape = tuple[int, int, int]
Constructor = Callable[[config.Model, Shape, int], nn.Module]

models: Registry[Constructor] = Registry("model.name")
"""name -> constructor(model config, (channels, height, width), classes). A constructor takes images as float32
[N, C, H, W] and gives logits [N, classes]; it names its classifier in ``output_layer`` and may name parameters
that its paper leaves unpruned in ``unprunable`` (parameter name -> reason)."""


def require_size(model: config.Model, shape: Shape, least: int) -> None:
    """Refuse (UserError) images that the model's poolings would shrink to nothing."""
    if min(shape[1:]) < least:
        raise UserError(
            f"model.name={model.name!r} needs images of at least {least}x{least} pixels; "
            f"the data set's are {'x'.join(map(str, shape))} (channels x height x width)"
        )

"""Whether a masked network still has a path of surviving weights from its input to its output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lth_scale.models.flops import evaluating
from lth_scale.models.parameters import Owner, classified, is_norm

_NORMS = (F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm, F.local_response_norm)


def connected(model: nn.Module, masks: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> bool:
    """Whether any output still depends on the input through surviving weights.

    A float64 copy of the model gets positive weights where its mask keeps them, no biases or tokens, norm layers that
    only rescale, and an input of ones: all its values are then sums of products along paths, and an output is
    positive exactly when a path reaches it. The usual non-linearities keep positive numbers positive, and 0 at 0.

    Args:
        model: any; left as it is.
        masks: name -> bool tensor of the parameter's full shape, True = kept; a tensor without one is all kept.
        shape: of one sample, without the batch: (channels, height, width).
    """
    network = copy.deepcopy(model).double()
    with evaluating(network), _Rescaling():
        for name, parameter, owners, reason in classified(network):
            parameter.copy_(_positive(parameter, owners, reason, masks.get(name)))
        like = next(network.parameters())
        output = network(torch.ones(1, *shape, device=like.device, dtype=like.dtype))
    return not bool((output <= 0).all())


def _positive(
    parameter: torch.Tensor, owners: list[Owner], reason: str | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """1 / fan-in for kept weights, so that sums neither overflow nor vanish; 1 for scales; 0 for what adds."""
    if mask is not None:
        return mask.to(parameter) * (mask.shape[0] / mask.numel())
    if parameter.dim() > 1 and reason not in ("bias", "embedding", "position embedding", "class or register token"):
        return torch.full_like(parameter, parameter.shape[0] / parameter.numel())
    adds = reason != "scale" and not (is_norm(owners[0].module) and owners[0].attribute == "weight")
    return torch.full_like(parameter, 0.0 if adds else 1.0)


class _Rescaling(TorchFunctionMode):
    """Makes every normalisation, of activations or of weights, a division by the largest value.

    A real one subtracts, which a path does not; none at all would let deep networks overflow.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _NORMS:
            values = args[0] if args else kwargs["input"]
            return values / values.amax().clamp(min=torch.finfo(values.dtype).tiny)
        return func(*args, **kwargs)

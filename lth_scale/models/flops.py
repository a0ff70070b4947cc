"""Multiply-adds of one forward, by the weight tensor that owns them: a ticket's are the sum of macs times density."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lth_scale.models.parameters import ATTENTION_WEIGHTS, CONVOLUTIONS, is_weight, prunable

FORWARD_AND_BACKWARD = 3
"""Forward passes that training on an image takes as long as: the backward pass costs about two."""

Owners = dict[int, str]
"""id(weight) -> its name; a tied weight's first name, which then owns the multiply-adds of all its uses."""


def macs(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Multiply-adds per sample of one dense forward, owned by each prunable tensor, in parameter order.

    One multiply-add is 2 FLOPs; a backward takes twice a forward's. Products without a weight (attention scores)
    belong to no tensor and are not counted.

    Args:
        model: any; its modes are restored afterwards.
        shape: of one sample, without the batch: (channels, height, width).
    """
    counts = _count(model, shape)
    return {tensor.name: counts[tensor.name] for tensor in prunable(model)}


def macs_fixed(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds per sample of one forward that no mask can save: unprunable convolution and linear weights."""
    return _count(model, shape).total() - sum(macs(model, shape).values())


def macs_left(model: nn.Module, shape: tuple[int, ...], counts: Mapping[str, tuple[int, int]]) -> tuple[float, float]:
    """Multiply-adds per sample of one forward: dense, and with a mask, given (weights kept, all) of what it covers."""
    prunable, fixed = macs(model, shape), macs_fixed(model, shape)
    left = sum(count * kept / numel for name, count in prunable.items() for kept, numel in [counts.get(name, (1, 1))])
    return sum(prunable.values()) + fixed, left + fixed


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module's own mode is restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _count(model: nn.Module, shape: tuple[int, ...]) -> Counter[str]:
    """Weight name -> multiply-adds of a forward of one sample."""
    places = {(module, key): p for module in model.modules() for key, p in module._parameters.items() if p is not None}
    weights = {id(p) for (module, key), p in places.items() if is_weight(module, key)}
    owners = {id(p): name for name, p in model.named_parameters() if id(p) in weights}
    like = next(model.parameters())
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        for handle in _hooks(model.modules(), owners, counts):
            stack.callback(handle.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(_Linear(owners, counts))
        model(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    return counts


class _Linear(TorchFunctionMode):
    """Counts linear layers where they are computed, since some models apply a layer's weight without calling it."""

    def __init__(self, owners: Owners, counts: Counter[str]) -> None:
        super().__init__()
        self.owners, self.counts = owners, counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            inputs, weight = _linear_arguments(*args, **(kwargs or {}))
            if id(weight) in self.owners:
                self.counts[self.owners[id(weight)]] += inputs.numel() // inputs.shape[-1] * weight.numel()
        return func(*args, **(kwargs or {}))


def _linear_arguments(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Any:
    """What F.linear was given, by position or by name."""
    return input, weight


def _hooks(
    modules: Iterable[nn.Module], owners: Owners, counts: Counter[str]
) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Forward hooks for what is not computed by a plain linear: convolutions and torch's fused attention."""

    def convolution(module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        if (weight := module._parameters.get("weight")) is not None:
            counts[owners[id(weight)]] += output.numel() // weight.shape[0] * weight.numel()

    def attention(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        inputs = [*args, *(kwargs[key] for key in ("query", "key", "value") if key in kwargs)][:3]
        tokens = [x.numel() // x.shape[-1] for x in inputs]
        for key, count in zip(ATTENTION_WEIGHTS, (sum(tokens) / 3, *tokens), strict=True):
            if (weight := module._parameters[key]) is not None:
                counts[owners[id(weight)]] += round(count * weight.numel())
        assert isinstance(module, nn.MultiheadAttention)
        counts[owners[id(module.out_proj.weight)]] += tokens[0] * module.out_proj.weight.numel()

    for module in modules:
        if isinstance(module, CONVOLUTIONS):
            yield module.register_forward_hook(convolution, with_kwargs=True)
        elif isinstance(module, nn.MultiheadAttention):
            yield module.register_forward_hook(attention, with_kwargs=True)

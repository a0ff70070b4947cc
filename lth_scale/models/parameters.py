"""Which parameters of any model can be pruned, and why the others cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_UNDECAYED = ("bias", "norm layer", "embedding", "position embedding", "class or register token", "scale")


@dataclass(frozen=True)
class Prunable:
    """A weight tensor that masks cover.

    Args:
        name: as in ``named_parameters``.
        shape: of the full tensor.
        kind: which of ``prune.rates`` applies; ``output`` is the classifier.
    """

    name: str
    shape: tuple[int, ...]
    kind: Literal["conv", "fc", "output"]

    @property
    def numel(self) -> int:
        """How many weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Unprunable:
    """A parameter that no mask covers, and why."""

    name: str
    numel: int
    reason: str


@dataclass(frozen=True)
class Owner:
    """One place where a parameter is used: tied parameters have several."""

    module: nn.Module
    attribute: str


def prunable(model: nn.Module) -> list[Prunable]:
    """The weights of convolutions and linear layers, fused attention projections included, in parameter order.

    A tied weight is listed once, under its first name; it is not prunable if one of its uses is not (an embedding).
    ``kind`` is ``output`` for the layer that the model (or a submodule) names in ``output_layer``, or that timm's
    ``get_classifier()`` returns; other foreign models have no output kind.
    """
    outputs = _output_parameters(model)
    return [
        Prunable(name, tuple(parameter.shape), _kind(parameter, owners, outputs))
        for name, parameter, owners, reason in classified(model)
        if reason is None
    ]


def unprunable(model: nn.Module) -> list[Unprunable]:
    """Every other parameter, in parameter order, with the reason: together with :func:`prunable` a partition."""
    return [
        Unprunable(name, parameter.numel(), reason)
        for name, parameter, _, reason in classified(model)
        if reason is not None
    ]


def decay_groups(model: nn.Module) -> tuple[list[str], list[str]]:
    """Parameter names with and without weight decay under ``train.decay: weights``.

    Without: biases, norm layers, embeddings, tokens and per-channel scales. Unpruned weights (shortcuts) do decay.
    """
    groups: tuple[list[str], list[str]] = ([], [])
    for name, _, _, reason in classified(model):
        groups[reason in _UNDECAYED].append(name)
    return groups


def has_batchnorm(model: nn.Module) -> bool:
    """Whether the model's results depend on the micro-batch through batch statistics."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def has_dropout(model: nn.Module) -> bool:
    """Whether single values are dropped in training, by noise that depends on how many there are."""
    return any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules())


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a norm layer: torch's, or a foreign one that says so in its class's name."""
    wraps = any(isinstance(inner, (*CONVOLUTIONS, nn.Linear)) for inner in module.modules())
    return isinstance(module, nn.modules.batchnorm._NormBase) or ("Norm" in type(module).__name__ and not wraps)


def is_weight(module: nn.Module, attribute: str) -> bool:
    """Whether this parameter of this module is a convolution's, linear layer's or attention projection's weight."""
    if isinstance(module, nn.MultiheadAttention):
        return attribute in ATTENTION_WEIGHTS
    return attribute == "weight" and isinstance(module, (*CONVOLUTIONS, nn.Linear))


def classified(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, list[Owner], str | None]]:
    """(name, parameter, owners, reason not to prune it or None) of every parameter, tied ones once."""
    owners: dict[int, list[Owner]] = {}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(Owner(module, attribute))
    declared = _declared_unprunable(model)
    for name, parameter in model.named_parameters():
        places = owners[id(parameter)]
        reasons = [_reason(name, parameter, place) for place in places]
        yield name, parameter, places, declared.get(id(parameter)) or next(filter(None, reasons), None)


def _reason(name: str, parameter: nn.Parameter, owner: Owner) -> str | None:
    """Why the parameter, in this use, is not pruned; None if it can be."""
    if is_weight(owner.module, owner.attribute):
        return None
    if is_norm(owner.module):
        return "norm layer"
    if isinstance(owner.module, _EMBEDDINGS):
        return "embedding"
    if any(mark in name.lower() for mark in ("pos_emb", "position", "rel_pos", "pos_bias")):
        return "position embedding"
    if "token" in name.lower():
        return "class or register token"
    if "bias" in owner.attribute:
        return "bias"
    if parameter.squeeze().dim() <= 1:
        return "scale"
    return f"a parameter of {type(owner.module).__name__}, which is neither convolution, linear layer nor attention"


def _declared_unprunable(model: nn.Module) -> dict[int, str]:
    """id(parameter) -> reason, from the ``unprunable`` attribute of the model or, if it is wrapped, of a submodule."""
    return {
        id(module.get_parameter(name)): reason
        for module in model.modules()
        for name, reason in getattr(module, "unprunable", {}).items()
    }


def _output_parameters(model: nn.Module) -> set[int]:
    """ids of the parameters of the classifier that the model, or a wrapped submodule, declares."""
    heads: list[nn.Module] = []
    for module in model.modules():
        if isinstance(name := getattr(module, "output_layer", None), str):
            heads.append(module.get_submodule(name))
        elif callable(classifier := getattr(module, "get_classifier", None)):
            found = classifier()
            # distilled models have two classifiers
            heads += [head for head in (found if isinstance(found, tuple) else (found,)) if isinstance(head, nn.Module)]
    return {id(parameter) for head in heads for parameter in head.parameters()}


def _kind(parameter: nn.Parameter, owners: list[Owner], outputs: set[int]) -> Literal["conv", "fc", "output"]:
    if id(parameter) in outputs:
        return "output"
    return "conv" if isinstance(owners[0].module, CONVOLUTIONS) else "fc"

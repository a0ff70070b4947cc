"""Scopes: which tensors compete with one another, and how the survivors of a round are shared out among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lth_scale.config import Prune
from lth_scale.errors import UserError
from lth_scale.pruning.tensors import Weights
from lth_scale.registry import Registry


@dataclass(frozen=True)
class Scope:
    """One way to share out survivors.

    Args:
        together: all tensors compete in one pool; otherwise each is alone in one.
        weight: what a tensor's part of all survivors is proportional to, until nothing of it is pruned.
        own_rates: whether each tensor goes by its own kind's rate under prune.schedule=rate.
        channels: whole channels compete, by their means with one another or, alike, by their places in their layer's
            order; only :mod:`lth_scale.structured` knows which weights those are.
        pattern: whether each tensor keeps n of m consecutive inputs (prune.nm), which leaves nothing to share out.
    """

    together: bool = False
    weight: Callable[[Weights], float] = lambda tensor: tensor.numel
    own_rates: bool = False
    pattern: bool = False
    channels: Literal["", "together", "alike"] = ""


scopes: Registry[Scope] = Registry("prune.scope")
scopes.register("global")(Scope(together=True))
scopes.register("layer")(Scope(own_rates=True))
scopes.register("uniform")(Scope())
# Density proportional to sum(shape) / prod(shape) (Evci et al. 2020, section 3, "Erdos-Renyi-Kernel").
scopes.register("erk")(Scope(weight=lambda tensor: sum(tensor.shape)))
scopes.register("channel")(Scope(together=True, channels="together"))
scopes.register("channel_uniform")(Scope(together=True, channels="alike"))
scopes.register("n:m")(Scope(pattern=True))


@dataclass(frozen=True)
class Pool:
    """Tensors that compete.

    Args:
        members: their positions among all tensors.
        size: their weights.
        floor: survivors that prune.min_per_layer leaves them at least.
        weight: what their part of all survivors is proportional to.
        rate: fraction of the survivors removed per round.
    """

    members: tuple[int, ...]
    size: int
    floor: int
    weight: float
    rate: float


def rate_of(kind: str, config: Prune) -> float:
    """The rate of a kind of tensor."""
    own: float | None = getattr(config.rates, kind)
    return config.rate if own is None else own


def fits(tensor: Weights, config: Prune) -> bool:
    """Whether the tensor's inputs, its second dimension, can be cut into groups of m (prune.nm)."""
    return len(tensor.shape) > 1 and tensor.shape[1] % config.group == 0


def pools(tensors: Sequence[Weights], config: Prune) -> list[Pool]:
    """The disjoint pools of config.scope; tensors in no pool are never pruned.

    Raises:
        UserError: a kind's rate does not go with the scope or the schedule, or nothing would ever be pruned.
    """
    scope = scopes[config.scope]
    _check_rates(tensors, config, scope)
    members = [index for index, tensor in enumerate(tensors) if rate_of(tensor.kind, config)]
    if not members:
        raise UserError(f"prune.rates={config.rates!r} is not valid: with these rates no tensor is ever pruned")
    if scope.pattern:
        members = [index for index in members if fits(tensors[index], config)]
        if not members:
            raise UserError(f"prune.nm={config.nm!r} fits no tensor: none has a multiple of {config.group} inputs")
    groups = [members] if scope.together else [[member] for member in members]
    return [_pool([tensors[member] for member in group], tuple(group), config, scope) for group in groups]


def _pool(tensors: Sequence[Weights], members: tuple[int, ...], config: Prune, scope: Scope) -> Pool:
    return Pool(
        members,
        size=sum(tensor.numel for tensor in tensors),
        floor=sum(min(config.min_per_layer, tensor.numel) for tensor in tensors),
        weight=sum(map(scope.weight, tensors)),
        rate=rate_of(tensors[0].kind, config) if scope.own_rates else config.rate,
    )


def _check_rates(tensors: Sequence[Weights], config: Prune, scope: Scope) -> None:
    """Raises UserError for a kind's rate, neither 0 nor prune.rate, where all tensors share one."""
    if scope.own_rates and config.schedule == "rate":
        return
    for kind in dict.fromkeys(tensor.kind for tensor in tensors):
        if rate_of(kind, config) not in (0, config.rate):
            one = f"prune.schedule={config.schedule!r}" if scope.own_rates else f"prune.scope={config.scope!r}"
            raise UserError(
                f"prune.rates.{kind}={rate_of(kind, config)!r} is not valid with {one}, which has one"
                f" rate ({config.rate}); leave it unset, set it to 0 (never pruned), or set prune.scope=layer"
                " and prune.schedule=rate"
            )

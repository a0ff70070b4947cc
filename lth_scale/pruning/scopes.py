"""Scopes: which tensors compete with one another, and what fraction of their survivors a round removes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lth_scale.config import Prune
from lth_scale.errors import UserError
from lth_scale.registry import Registry


@dataclass(frozen=True)
class Pool:
    """Tensors (by their position) that compete, and the fraction of their survivors removed per round."""

    members: tuple[int, ...]
    rate: float


Scope = Callable[[Sequence[str], Prune], list[Pool]]
"""(Kind of each tensor, config) -> disjoint pools; tensors in no pool are never pruned."""

scopes: Registry[Scope] = Registry("prune.scope")


def rate_of(kind: str, config: Prune) -> float:
    """Fraction removed per round from tensors of this kind: prune.rates.KIND, or prune.rate where that is unset."""
    own: float | None = getattr(config.rates, kind)
    return config.rate if own is None else own


@scopes.register("global")
def whole(kinds: Sequence[str], config: Prune) -> list[Pool]:
    """One pool of all tensors whose kind's rate is not 0.

    Raises:
        UserError: a kind's rate is neither 0 nor prune.rate; one pool has one rate.
    """
    for kind in dict.fromkeys(kinds):
        if rate_of(kind, config) not in (0, config.rate):
            raise UserError(
                f"prune.rates.{kind}={rate_of(kind, config)!r} is not valid with prune.scope='global', which has one"
                f" rate ({config.rate}); leave it unset, set it to 0 (never pruned), or set prune.scope=layer"
            )
    members = tuple(index for index, kind in enumerate(kinds) if rate_of(kind, config))
    return [Pool(members, config.rate)] if members else []


@scopes.register("layer")
def layer(kinds: Sequence[str], config: Prune) -> list[Pool]:
    """Each tensor by itself, at its kind's rate."""
    return [Pool((index,), rate_of(kind, config)) for index, kind in enumerate(kinds) if rate_of(kind, config)]


def pools(kinds: Sequence[str], config: Prune) -> list[Pool]:
    """The pools of config.scope. Raises UserError if nothing would ever be pruned."""
    found = scopes[config.scope](kinds, config)
    if not found:
        raise UserError(f"prune.rates={config.rates!r} is not valid: with these rates no tensor is ever pruned")
    return found

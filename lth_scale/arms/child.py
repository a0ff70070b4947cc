"""Trainings that share a round's start and differ in their noise (Frankle et al. 2020, section 2)."""

from __future__ import annotations

from collections.abc import Iterator

from lth_scale.arms import ticket
from lth_scale.arms.base import Arm, Place, Sources, Start, beside, drawn, ticket_before
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.rewinding import Recipe

STREAMS = {"both": ("order", "augment"), "order": ("order",), "augment": ("augment",)}


def start(sources: Sources) -> Start:
    """The start of the ticket's round, bit for bit; in round 0 that of the rest of the dense pass."""
    if sources.number:
        return ticket.start(sources)
    recipe = Recipe(optimizer="fresh" if sources.recipe.dense_break else "k")
    source = f"theta_{sources.theta_k().step}"
    return Start(sources.mask, sources.restored(recipe), source, sources.clock(recipe))


def _needs(folder: str, number: int) -> tuple[Place, ...]:
    return ticket_before(folder, number) or (("ticket", 0),)


def _wanted(config: Config, last: int) -> Iterator[Place]:
    asked = config.connectivity
    if asked.children:
        _require_noise(config)
        yield from ((folder, n) for n in asked.measured(last) for folder in drawn("child", asked.children))


def _require_noise(config: Config) -> None:
    data, train = config.data, config.train
    augmented = data.augment != "none" or data.randaugment or train.mixup or train.cutmix
    if config.connectivity.vary == "augment" and not augmented:
        raise UserError(
            f"connectivity.vary='augment' is not valid with data.augment={data.augment!r}: all children would be the "
            "same; choose order or both, or an augmentation"
        )


beside.register("child")(
    Arm(start, needs=_needs, wanted=_wanted, varied=lambda config: STREAMS[config.connectivity.vary])
)

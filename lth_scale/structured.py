"""Channel tickets: a round removes whole channels, whatever computes and reads them (Li et al. 2017, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from lth_scale.checkpoint import State
from lth_scale.config import Prune
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.models import Prunable, channels, redraw
from lth_scale.models.channels import Group
from lth_scale.pruning import Planned, Shard, criteria, scopes


def check(groups: Sequence[Group], prunable: Sequence[Prunable], prune: Prune, last: Planned) -> None:
    """Refuse, with a UserError naming the field, what channels cannot be ranked by or reduced to."""
    scope = f"prune.scope={prune.scope!r}"
    for kind in dict.fromkeys(tensor.kind for tensor in prunable):
        if (own := getattr(prune.rates, kind)) not in (None, prune.rate):
            raise UserError(f"prune.rates.{kind}={own} is not valid with {scope}: a channel is in several layers")
    if criteria[prune.criterion].signed:
        usable = ", ".join(name for name in criteria if not criteria[name].signed)
        raise UserError(
            f"prune.criterion={prune.criterion!r} is not valid with {scope}: its scores have an order, but no mean; "
            f"choose from: {usable}"
        )
    floor = _floor(prune)
    least = channels.fewest(groups, prunable, floor)
    if not groups or least > last.kept:
        total = sum(tensor.numel for tensor in prunable)
        raise UserError(
            f"{scope} cannot leave {last.kept:,} of {total:,} weights, those of round {last.round}: with {floor} in "
            f"each of the model's {len(groups)} groups of channels {least:,} are left (density {least / total:.4g}); "
            "choose fewer prune.rounds or a larger prune.to"
        )


def next_mask(
    groups: Sequence[Group],
    prunable: Sequence[Prunable],
    shards: Sequence[Shard],
    mask: Mask,
    prune: Prune,
    target: int,
) -> Mask:
    """The mask without the channels whose surviving weights score lowest on the mean, as few as reach the target.

    Args:
        groups: the model's coupled channels.
        prunable: all that the mask covers.
        shards: each tensor whole.
        mask: the round's.
        prune: the section; its criterion and scope decide.
        target: weights to be left at most.
    """
    score = criteria[prune.criterion].score
    scored = {shard.name: score(shard).reshape(shard.shape) for shard in shards}
    earlier = channels.kept_channels(groups, mask)
    found = channels.scores(groups, scored, mask)
    if scopes[prune.scope].channels == "alike":
        found = channels.ranks(found, earlier)
    kept, _ = channels.select(groups, prunable, found, target, earlier, _floor(prune))
    return channels.channel_mask(groups, kept, prunable)


def connected(groups: Sequence[Group], mask: Mask) -> list[torch.Tensor]:
    """For each group, bool [size]: the units that a mask leaves some weight, into or out of them.

    The others reach no output, and nothing of them is ranked: a round trains the same without them. A unit that has
    only inputs left has weights that the next round ranks; one that has only outputs left is a constant that trains.

    Args:
        groups: the model's coupled units; the first of each counts as connected where none is.
        mask: any; weights that it does not cover and that read a unit survive.
    """
    found = []
    for group in groups:
        alive = torch.zeros(group.size, dtype=torch.bool)
        for axis in group.producers + group.consumers:
            if axis.name in mask:
                alive |= mask[axis.name].movedim(axis.dim, 0).reshape(group.size, -1).any(1)
        alive |= any(axis.name not in mask for axis in group.consumers)
        alive[0] |= not alive.any()
        found.append(alive)
    return found


Draw = Callable[[str, int], torch.Tensor]


def permuted(groups: Sequence[Group], mask: Mask, draw: Draw) -> Mask:
    """As many channels of each group, chosen by ``draw``: (name, n) -> a permutation of n places."""
    kept = channels.kept_channels(groups, mask)
    others = [alive[draw(group.producers[0].name, len(alive))] for group, alive in zip(groups, kept, strict=True)]
    return channels.channel_mask(groups, others, [Prunable(name, shape, "conv") for name, shape in mask.shapes.items()])


def from_scratch(groups: Sequence[Group], mask: Mask, model: nn.Module, init: str, seed: int) -> State:
    """An initialisation drawn for the sizes that the small network's layers have, in the coordinates of the whole one.

    Args:
        groups: the model's coupled channels.
        mask: of whole channels.
        model: in its original size; its values stay where channels are dead.
        init: as ``model.init``.
        seed: of the draw.
    """
    kept = channels.kept_channels(groups, mask)
    small = channels.narrowed(model, groups, kept)
    redraw(small, init, seed)
    wide = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    drawn = {name: tensor.detach() for name, tensor in [*small.named_parameters(), *small.named_buffers()]}
    found = channels.widened(drawn, wide, groups, kept)
    buffers = {name for name, _ in model.named_buffers()}
    return State(
        {name: tensor for name, tensor in found.items() if name not in buffers},
        {name: tensor for name, tensor in found.items() if name in buffers},
    )


def _floor(prune: Prune) -> int:
    return max(1, prune.min_per_layer)

"""Channel tickets: which channels a network has, which stay, the mask that cuts the others off, and removing them.

On disk a channel ticket is an ordinary mask of the original names and shapes. A dead channel's rows in what computes it
and its inputs in what reads it are both pruned, so that it adds exactly 0 to every successor, whatever BatchNorm's bias
has made of it meanwhile; the network is then the one without the channel (Li et al. 2017, section 3).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch

from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.models.coupling import Axis as Axis
from lth_scale.models.coupling import Group as Group
from lth_scale.models.coupling import Kept as Kept
from lth_scale.models.following import groups as groups
from lth_scale.models.narrowing import narrowed as narrowed
from lth_scale.models.narrowing import widened as widened
from lth_scale.models.parameters import Prunable


def everything(groups: Sequence[Group]) -> list[torch.Tensor]:
    """All channels of all groups."""
    return [torch.ones(group.size, dtype=torch.bool) for group in groups]


def channel_mask(groups: Sequence[Group], kept: Kept, prunable: Sequence[Prunable]) -> Mask:
    """The mask that prunes every weight into and out of the dead channels, and no other.

    Args:
        groups: as :func:`groups` found them.
        kept: for each group, bool [size], True = stays.
        prunable: all prunable tensors of the model.
    """
    masks = {tensor.name: torch.ones(tensor.shape, dtype=torch.bool) for tensor in prunable}
    for group, alive in zip(groups, kept, strict=True):
        for axis in group.axes:
            if axis.name in masks:
                mask = masks[axis.name].movedim(axis.dim, 0)
                mask[~axis.spread(alive)] = False
    return Mask(masks)


def kept_channels(groups: Sequence[Group], mask: Mask) -> list[torch.Tensor]:
    """For each group, bool [size]: which channels a mask of :func:`channel_mask` left, some weight into them kept.

    Raises:
        UserError: the mask prunes other weights than those of whole channels, as unstructured ones do.
    """
    kept = []
    for group in groups:
        rows = [_rows(group, mask[axis.name]) for axis in group.producers if axis.name in mask]
        kept.append(torch.stack([row.any(1) for row in rows]).any(0))
    prunable = [Prunable(name, shape, "conv") for name, shape in mask.shapes.items()]
    if channel_mask(groups, kept, prunable) != mask:
        raise UserError("the mask does not prune whole channels; channel tickets need one that was found by channels")
    return kept


def counts(groups: Sequence[Group], kept: Kept, prunable: Sequence[Prunable]) -> dict[str, int]:
    """Name -> weights that :func:`channel_mask` keeps, exactly, without making it."""
    return _counts(groups, [int(alive.sum()) for alive in kept], prunable)


def fewest(groups: Sequence[Group], prunable: Sequence[Prunable], floor: int = 1) -> int:
    """Weights that are left when every group is down to ``floor`` channels: no selection leaves fewer."""
    return sum(_counts(groups, [min(floor, group.size) for group in groups], prunable).values())


def scores(
    groups: Sequence[Group], tensors: Mapping[str, torch.Tensor], mask: Mapping[str, torch.Tensor], mean: bool = True
) -> list[torch.Tensor]:
    """For each group, float64 [size]: the scores of the surviving weights that compute a channel, over all producers.

    Args:
        groups: as :func:`groups` found them.
        tensors: name -> score of each weight (such as ``|w|``) in the full shape; each is read once.
        mask: name -> bool tensor of each prunable tensor; what it pruned does not count.
        mean: per weight, so that channels of wide and narrow layers compare; otherwise the sum. A dead channel has 0.
    """
    found = []
    for group in groups:
        total, weights = np.zeros(group.size), np.zeros(group.size, np.int64)
        for axis in group.producers:
            if axis.name in mask:
                alive = _rows(group, mask[axis.name]).numpy()
                rows = _rows(group, tensors[axis.name].detach().cpu().double()).numpy()
                total += np.where(alive, rows, 0).sum(1)  # numpy's order of adding depends on nothing but the shape
                weights += alive.sum(1)
        found.append(torch.from_numpy(total / np.maximum(weights, 1) if mean else total))
    return found


def ranks(scores: Sequence[torch.Tensor], kept: Kept) -> list[torch.Tensor]:
    """Scores that let no group compete with another: float64 [size], a channel's place among its group's, in [0, 1).

    Args:
        scores: for each group, [size]; of equal ones the lower index is first.
        kept: for each group, bool [size], the channels there still are; the others get 0.
    """
    found = []
    for values, alive in zip(scores, kept, strict=True):
        places = alive.nonzero().flatten()[values[alive].argsort(stable=True)]
        found.append(torch.zeros(len(alive), dtype=torch.float64))
        found[-1][places] = torch.arange(len(places), dtype=torch.float64) / max(1, len(places))
    return found


def select(
    groups: Sequence[Group],
    prunable: Sequence[Prunable],
    scores: Sequence[torch.Tensor],
    target: int,
    earlier: Kept | None = None,
    floor: int = 1,
) -> tuple[list[torch.Tensor], dict[str, int]]:
    """Remove whole channels, lowest score first over all groups, until at most ``target`` prunable weights are kept.

    Among equal scores the lower (group, index) goes first. The ``floor`` best channels of a group are never removed.

    Args:
        groups: as :func:`groups` found them.
        prunable: all prunable tensors of the model; those without channels of any group count as kept.
        scores: for each group, [size], comparable over groups; those of :func:`ranks` prune all groups alike.
        target: weights, of all prunable ones.
        earlier: for each group, bool [size], the channels there still are; None means all. None comes back.
        floor: channels, at least 1, that every group keeps.

    Returns:
        For each group, bool [size], which channels stay; and, by name, how many weights they keep.

    Raises:
        UserError: scores are NaN, or the groups' floors keep more than ``target``.
    """
    assert floor >= 1, "a group without channels would cut the network"
    earlier = everything(groups) if earlier is None else earlier
    if bad := [g.producers[0].name for g, values in zip(groups, scores, strict=True) if values.isnan().any()]:
        raise UserError(f"channels of {bad[0]} have NaN scores, which have no rank: training diverged; lower train.lr")
    order = _removable(scores, earlier, floor)
    alive = np.array([int(kept.sum()) for kept in earlier])

    def left(removed: int) -> dict[str, int]:
        gone = np.bincount([group for group, _ in order[:removed]], minlength=len(groups)).astype(int)
        return _counts(groups, (alive - gone).tolist(), prunable)

    removed = bisect_left(range(len(order) + 1), -target, key=lambda number: -sum(left(number).values()))
    if removed > len(order):
        total, least = sum(tensor.numel for tensor in prunable), sum(left(len(order)).values())
        raise UserError(
            f"channels cannot be removed until {target:,} of {total:,} prunable weights are left: with {floor} in each"
            f" group {least:,} are (density {least / total:.4g}); choose a larger prune.to or fewer prune.rounds"
        )
    kept = [channels.clone() for channels in earlier]
    for group, index in order[:removed]:
        kept[group][index] = False
    return kept, left(removed)


def _removable(scores: Sequence[torch.Tensor], kept: Kept, floor: int) -> list[tuple[int, int]]:
    """(Group, index) of the channels that may go, in the order in which they do."""
    ranked: list[tuple[float, int, int]] = []
    for group, (values, alive) in enumerate(zip(scores, kept, strict=True)):
        places = alive.nonzero().flatten().tolist()
        within = sorted((value, group, index) for value, index in zip(values[alive].tolist(), places, strict=True))
        ranked += within[: max(0, len(within) - floor)]
    return [(group, index) for _, group, index in sorted(ranked)]


def _counts(groups: Sequence[Group], alive: Sequence[int], prunable: Sequence[Prunable]) -> dict[str, int]:
    """Name -> weights kept when each group has so many channels: a tensor shrinks by the factors of its dimensions."""
    shares: dict[str, list[tuple[int, int]]] = {}
    for group, number in zip(groups, alive, strict=True):
        for axis in group.axes:
            shares.setdefault(axis.name, []).append((number, group.size))
    parts = {tensor.name: shares.get(tensor.name, []) for tensor in prunable}
    return {
        tensor.name: tensor.numel * prod(left for left, _ in part) // prod(size for _, size in part)
        for tensor, part in zip(prunable, parts.values(), strict=True)
    }


def _rows(group: Group, tensor: torch.Tensor) -> torch.Tensor:
    """A producer as [size, weights of one channel]."""
    return tensor.reshape(group.size, -1)

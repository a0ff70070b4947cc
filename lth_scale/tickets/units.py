"""Masks of fully connected networks up to the order of their hidden units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.tickets.overlap import Overlap, compare

Matrix = npt.NDArray[np.float64]
Order = npt.NDArray[np.intp]
DRAWS = 5  # of random masks, for what chance gives
ALL = "all"  # tensors together


def matched(one: Mask, other: Mask) -> Mask:
    """The second mask with its hidden units in the order in which it overlaps the first most, as far as this finds it.

    Layer by layer from the input: unit j of the second network is given to unit i of the first so that the number of
    incoming weights that both keep, summed over the layer's units, is largest (an assignment problem, solved exactly),
    the units before already being in their new order. Then again over all layers, counting incoming and outgoing
    weights together, until the overlap of the whole network rises no more. Inputs and outputs stay where they are.
    Finding the best order of all is hard; this one cannot be improved within a single layer. Permuted units are found
    again exactly, save those that the masks do not tell apart.

    Raises:
        UserError: the masks are not of one network of the ``lenet_300_100`` family: ``fc1.weight``, ``fc2.weight``,
            ..., ``output.weight``, each as wide as the one before is high.
    """
    names = _layers(one, other)
    mine, theirs = _matrices(one, names), _matrices(other, names)
    orders = [np.arange(len(layer)) for layer in theirs[:-1]]
    for layer in range(len(orders)):
        orders[layer] = _best(_incoming(mine, theirs, orders, layer))
    best = _overlap(mine, theirs, orders)
    while orders:
        for layer in range(len(orders)):
            orders[layer] = _best(_incoming(mine, theirs, orders, layer) + _outgoing(mine, theirs, orders, layer))
        if (now := _overlap(mine, theirs, orders)) <= best:
            break
        best = now
    tensors = {name: torch.from_numpy(kept > 0) for name, kept in zip(names, _ordered(theirs, orders), strict=True)}
    return Mask(tensors)


def matched_jaccards(one: Mask, other: Mask) -> dict[str, tuple[float, float]]:
    """Tensor, and ALL -> (Jaccard after matching, what chance gives). Raises UserError as :func:`matched`.

    Matching finds some likeness in random masks too, so chance is measured: the mean over DRAWS random masks, matched.
    """
    random = [_jaccards(one, matched(one, random_like(other, draw))) for draw in range(DRAWS)]
    found = _jaccards(one, matched(one, other))
    return {name: (value, sum(draw[name] for draw in random) / DRAWS) for name, value in found.items()}


def _jaccards(one: Mask, other: Mask) -> dict[str, float]:
    found = compare(one, other)
    return {name: overlap.jaccard for name, overlap in found.items()} | {ALL: Overlap.total(found.values()).jaccard}


def random_like(mask: Mask, draw: int) -> Mask:
    """A mask of the same tensors and numbers kept, each tensor's drawn uniformly; a pure function of its arguments."""
    generator = np.random.default_rng(draw)
    flat = {name: generator.permutation(kept.numpy().reshape(-1)) for name, kept in mask.items()}
    return Mask({name: torch.from_numpy(kept).reshape(mask.shapes[name]) for name, kept in flat.items()})


def _layers(one: Mask, other: Mask) -> list[str]:
    names = [f"fc{number}.weight" for number in range(1, len(one))] + ["output.weight"]
    chained = set(names) == set(one) and all(len(shape) == 2 for shape in one.shapes.values())
    if not chained or any(one.shapes[b][1] != one.shapes[a][0] for a, b in pairwise(names)):
        raise UserError("hidden units are matched only in fully connected networks (model.name=lenet_300_100)")
    assert one.shapes == other.shapes
    return names


def _matrices(mask: Mask, names: Sequence[str]) -> list[Matrix]:
    return [mask[name].numpy().astype(np.float64) for name in names]


def _best(overlap: Matrix) -> Order:
    """For each unit of the first network the one of the second."""
    from scipy.optimize import linear_sum_assignment

    order: Order = linear_sum_assignment(overlap, maximize=True)[1]
    return order


def _incoming(mine: Sequence[Matrix], theirs: Sequence[Matrix], orders: Sequence[Order], layer: int) -> Matrix:
    """[units, units]: incoming weights kept by unit i of the first and unit j of the second network."""
    there = theirs[layer][:, orders[layer - 1]] if layer else theirs[layer]
    found: Matrix = mine[layer] @ there.T
    return found


def _outgoing(mine: Sequence[Matrix], theirs: Sequence[Matrix], orders: Sequence[Order], layer: int) -> Matrix:
    after = layer + 1
    there = theirs[after][orders[after]] if after < len(orders) else theirs[after]
    found: Matrix = mine[after].T @ there
    return found


def _ordered(theirs: Sequence[Matrix], orders: Sequence[Order]) -> list[Matrix]:
    rows = [layer[order] for layer, order in zip(theirs, orders, strict=False)] + [theirs[-1]]
    return [rows[0], *(layer[:, order] for layer, order in zip(rows[1:], orders, strict=True))]


def _overlap(mine: Sequence[Matrix], theirs: Sequence[Matrix], orders: Sequence[Order]) -> float:
    return float(sum((a * b).sum() for a, b in zip(mine, _ordered(theirs, orders), strict=True)))

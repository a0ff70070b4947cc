"""Random masks of a ticket's structure: the same counts in other places."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lth_scale.masks import Mask


def permuted(mask: Mask, draw: Callable[[str, int], torch.Tensor], width: int = 0) -> Mask:
    """Each tensor's mask with its bits in another order.

    Args:
        mask: a ticket's.
        draw: (name, n) -> a permutation of n places.
        width: of an n:m pattern: bits stay among the m inputs that they are with, so that n of them survive.
    """
    return Mask({name: _permuted(kept, draw(name, kept.numel()), width) for name, kept in mask.items()})


def _permuted(kept: torch.Tensor, order: torch.Tensor, width: int) -> torch.Tensor:
    if not width or kept.dim() < 2 or kept.shape[1] % width:
        return kept.flatten()[order].reshape(kept.shape)
    inputs_last = kept.movedim(1, -1)
    within = order.reshape(-1, width).argsort(1)
    bits = inputs_last.reshape(-1, width).gather(1, within)
    return bits.reshape(inputs_last.shape).movedim(-1, 1)

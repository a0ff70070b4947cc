"""What a network is made of here: planes of values, and layers that make them out of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(eq=False)
class Planes:
    """What a layer makes: channels of a size, with a border of zeros as wide as any reader needs.

    Args:
        channels, height, width: as in torch; 1 x 1 after a linear layer.
        border: cells on each side.
        positive: no value is below 0.
    """

    channels: int
    height: int
    width: int
    border: int = 0
    positive: bool = False

    @property
    def cells(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width

    @property
    def size(self) -> int:
        """Values of one image."""
        return self.channels * self.height * self.width

    @property
    def form(self) -> tuple[int, int, int, int]:
        """Channels, height and width with the border, and the border."""
        return self.channels, self.height + 2 * self.border, self.width + 2 * self.border, self.border


@dataclass(frozen=True)
class Weights:
    """Nonzero weights in order of their rows.

    Args:
        row: int [nonzeros], the output channel.
        channel, y, x: int [nonzeros], what is read: of which channel, and how far from where the window starts.
        value: float64 [nonzeros].
    """

    row: Array
    channel: Array
    y: Array
    x: Array
    value: Array


@dataclass(frozen=True, eq=False)
class Layer:
    """out[row] = max(floor, bias[row] + added[row] + sum of value * in[channel, y, x]), at every place of the window.

    Args:
        source: what is read.
        out: what is made.
        weights: of the sum; with ``maximum`` its places only.
        bias: float64 [rows].
        stride: of the window, by y and x.
        offset: where it starts, before the first cell.
        floor: 0 for ReLU, otherwise minus infinity.
        added: of ``out``'s shape.
        maximum: instead of the sum.
    """

    source: Planes
    out: Planes
    weights: Weights
    bias: Array
    stride: tuple[int, int] = (1, 1)
    offset: tuple[int, int] = (0, 0)
    floor: float = -np.inf
    added: Planes | None = None
    maximum: bool = False

    @property
    def plain(self) -> bool:
        """Nothing but a sum, so that what follows may be drawn into it."""
        return self.floor < 0 and self.added is None and not self.maximum


@dataclass(frozen=True)
class Lowered:
    """Args: image: what the first layer reads; layers: in order; logits: what the last one makes."""

    image: Planes
    layers: tuple[Layer, ...]
    logits: Planes

    @property
    def nonzeros(self) -> int:
        """Weights that are stored."""
        return sum(len(layer.weights.value) for layer in self.layers)

"""The sparse layers of a network, laid out in memory and run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise, product
from typing import Any

import numpy as np
from torch import nn

from lth_scale.inference.kernel import NARROW, TOGETHER, WIDTHS, kernels
from lth_scale.inference.layers import Array, Layer, Lowered, Planes
from lth_scale.inference.lowering import lowered

Call = tuple[Any, tuple[Any, ...]]
"""A function and its arguments."""

CACHE = 2**19  # bytes that a layer's inputs and outputs should fit in: half of a common level 2 cache
WEIGHTS = 2**11  # and the weights of the rows taken at a time, in half of a level 1 cache: 8 bytes each
LANES = 16  # images at once that pay in any case: 64 bytes, a vector of AVX-512 and a cache line


def compiled(model: nn.Module, shape: tuple[int, int, int]) -> Sparse:
    """A network whose pruned weights are 0, to be run with the others only.

    Args:
        model: in eval mode, on the CPU; left as it is. Compact it first: :func:`lth_scale.models.compacting.compacted`.
        shape: of one image: (channels, height, width).

    Raises:
        UserError: the network has something else than convolutions, linear layers, BatchNorm, ReLU, additions and
            pools, or llvmlite is not installed.
    """
    kernels()
    return Sparse(lowered(model, shape))


class Sparse:
    """Float32 images [N, channels, height, width] -> float32 logits [N, classes], on one thread.

    It keeps its buffers from call to call, so one object serves one thread at a time.
    """

    def __init__(self, network: Lowered) -> None:
        self.network = network
        _share_borders(network)
        largest = max(layer.source.size + layer.out.size for layer in network.layers)
        self.lanes = [n for n in WIDTHS if n <= LANES or 4 * n * largest <= CACHE]
        self.plan = cache(partial(_Plan, network))

    def __call__(self, images: Array) -> Array:
        """Images are taken in groups that lie side by side in a vector; what is left over, in smaller groups."""
        logits = np.empty((len(images), self.network.logits.size), np.float32)
        begin = 0
        while begin < len(images):
            lanes = next(n for n in self.lanes if n <= len(images) - begin)
            self.plan(lanes).run(images[begin : begin + lanes], logits[begin : begin + lanes])
            begin += lanes
        return logits


def _share_borders(network: Lowered) -> None:
    """What is added lies as the sum does."""
    pairs = [(layer.out, layer.added) for layer in network.layers if layer.added is not None]
    for _ in pairs:
        for one, other in pairs:
            one.border = other.border = max(one.border, other.border)


class _Plan:
    """Buffers and calls for so many images at once: value (channel, y, x) of image i is at [channel, y, x, i]."""

    def __init__(self, network: Lowered, lanes: int) -> None:
        self.lanes = lanes
        self.buffers = _buffers(network, lanes)
        self.image = self._inside(network.image)
        self.logits = self._inside(network.logits).reshape(-1, lanes)
        self.held: list[Array] = []
        self.calls = [call for layer in network.layers for call in self._calls(layer)]

    def run(self, images: Array, logits: Array) -> None:
        """Args: images: float32 [lanes, ...]; logits: float32 [lanes, classes], filled."""
        np.copyto(self.image, images.reshape(self.lanes, *self.image.shape[:-1]).transpose(1, 2, 3, 0))
        for kernel, arguments in self.calls:
            kernel(*arguments)
        np.copyto(logits, self.logits.T)

    def _inside(self, planes: Planes) -> Array:
        border = planes.border
        return self.buffers[planes][:, border : border + planes.height, border : border + planes.width]

    def _calls(self, layer: Layer) -> Iterator[Call]:
        """A few places at a time, whose inputs stay in the second cache, and of these a few rows, whose weights stay in
        the first while the window moves."""
        read = _Read(layer, self.buffers[layer.source], self.lanes)
        out, weights = self.buffers[layer.out], layer.weights
        yield from read.copies
        at = [self._keep(values, np.int32) for values in (read.begins, read.ends)]
        first = np.searchsorted(weights.row, np.arange(len(layer.bias) + 1))
        tables = [self._keep(values, np.int32) for values in (first, read.places)]
        numbers = [self._keep(values, np.float32) for values in (weights.value, layer.bias)]
        added = None if layer.added is None else self.buffers[layer.added]
        step, source = out[0].size, read.memory.ctypes.data
        count, together = len(read.begins), read.together
        kernel = kernels()["max" if layer.maximum else "sum", read.width, together]
        window = 4 * read.width * len(read.memory) * (1 + int(weights.y.max(initial=0)))
        most = max(1, CACHE // (window * together)) * together
        chunks = list(pairwise(_chunks(first, WEIGHTS if count > 1 else len(weights.value))))
        for place, (begin, end) in product(range(0, count, most), chunks):
            ends = [None if planes is None else planes[begin:].ctypes.data for planes in (added, out)]
            rows = (tables[0] + 4 * begin, tables[1], numbers[0], numbers[1] + 4 * begin)
            sizes = (min(most, count - place), end - begin, step, *(table + 4 * place for table in at))
            yield kernel, (*sizes, *rows, source, *ends, layer.floor)

    def _keep(self, values: Any, kind: Any) -> int:
        """Its address, for as long as the plan lives."""
        self.held.append(np.ascontiguousarray(values, kind))
        return self.held[-1].ctypes.data


def _buffers(network: Lowered, lanes: int) -> dict[Planes, Array]:
    """Memory of all planes; what nobody reads any more gives its memory to others of the same form."""
    last: dict[Planes, int] = {}
    for number, layer in enumerate(network.layers):
        last |= dict.fromkeys((layer.source, layer.added or layer.source), number)
    last[network.logits] = len(network.layers)
    free: dict[tuple[int, ...], list[Array]] = {}
    found = {network.image: _buffer(network.image, lanes)}
    for number, layer in enumerate(network.layers):
        unused = free.get(layer.out.form)
        found[layer.out] = unused.pop() if unused else _buffer(layer.out, lanes)
        for planes in {layer.source, layer.added or layer.source}:
            if last[planes] == number:
                free.setdefault(planes.form, []).append(found[planes])
    return found


def _buffer(planes: Planes, lanes: int) -> Array:
    """Zeros; the border stays so."""
    shape = (*planes.form[:3], lanes)
    size = int(np.prod(shape))
    memory = np.zeros(size + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4  # a vector then never lies in two cache lines more than it must
    return memory[start : start + size].reshape(shape)


def _chunks(first: Array, most: int) -> list[int]:
    """Rows at which to begin, so that no more weights are between two of them, or one row's; and the end."""
    begins = [0]
    for row in range(1, len(first) - 1):
        if first[row + 1] - first[begins[-1]] > most:
            begins.append(row)
    return [*begins, len(first) - 1]


class _Read:
    """How a layer reads its source in vectors.

    Outputs side by side read inputs side by side where the window moves by one, so that vectors run over both and over
    images. Where it moves by more, the columns that windows have in common are brought together first, or, with images
    enough to fill a vector, vectors run over these only.

    Attributes:
        memory: float32 [channels, ...], what is read; copies: calls that fill it.
        places: int [nonzeros], floats from where a window begins.
        width: floats of a vector; begins, ends: int [vectors], where each starts in the memory and in the output. The
            last vector of a run is moved back to end with it, and computes some values twice.
        together: vectors taken at a time; the last is repeated until they are a multiple of it.
    """

    def __init__(self, layer: Layer, memory: Array, lanes: int) -> None:
        source, out, (down, right) = layer.source, layer.out, layer.stride
        above, left = (source.border - before for before in layer.offset)
        x, (channels, rows, columns, _) = layer.weights.x + left, memory.shape
        across: tuple[Array, ...] = (x,)
        self.memory, self.copies = memory, list[Call]()
        if right > 1 and lanes < LANES:
            self.memory = np.zeros((channels, rows, right, -(-columns // right), lanes), np.float32)
            for part in sorted(set((x % right).tolist())):
                taken = memory[:, :, part::right]
                self.copies.append((np.copyto, (self.memory[:, :, part, : taken.shape[2]], taken)))
            across, right = (x % right, x // right), 1
        inputs = (layer.weights.channel, layer.weights.y + above, *across)
        self.places = np.ravel_multi_index(inputs, self.memory.shape[:-1]) * lanes
        high, long = out.height, out.width
        if layer.stride == (1, 1) and source.form[1:] == out.form[1:] == (high, long, 0):
            high, long = 1, high * long  # a 1x1 convolution: the plane is one run
        run = lanes * (long if right == 1 else 1)
        self.width = next(n for n in WIDTHS if n <= run)
        vectors = [*range(0, run - self.width + 1, self.width), *([run - self.width] if run % self.width else [])]
        row_in, row_out, border = self.memory[0, 0].size, out.form[2] * lanes, out.border
        windows = list(product(range(high), range(0, long, long if right == 1 else 1), vectors))
        self.together = TOGETHER if self.width <= NARROW and len(windows) >= TOGETHER else 1
        windows += windows[-1:] * (-len(windows) % self.together)
        self.begins = [y * down * row_in + x * right * lanes + vector for y, x, vector in windows]
        self.ends = [(y + border) * row_out + (x + border) * lanes + vector for y, x, vector in windows]

"""A network as sparse layers: each output is a bias plus a few weighted inputs, whatever the layer was called.

Convolutions, linear layers, BatchNorm and average pools are all sums over places; a convolution is one such set of sums
that moves over the image. BatchNorm, an addition and ReLU are drawn into the layer before them where nothing else reads
what lies between.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from lth_scale.errors import UserError
from lth_scale.inference.layers import Array, Layer, Lowered, Planes, Weights


def lowered(model: nn.Module, shape: tuple[int, int, int]) -> Lowered:
    """The layers of a network in eval mode.

    Args:
        model: pruned weights 0; on the CPU; left as it is.
        shape: of one image: (channels, height, width).

    Raises:
        UserError: naming the first function that is none of these.
    """
    with torch.no_grad():
        exported = torch.export.export(model, (torch.zeros(1, *shape),), strict=False)
    program = exported.run_decompositions({}).module()  # without operations in place
    assert isinstance(program, fx.GraphModule)
    return _Lowering(program, Planes(*shape)).run()


@dataclass
class _Lowering:
    program: fx.GraphModule
    image: Planes
    layers: list[Layer] = field(default_factory=list)
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def run(self) -> Lowered:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.image
            elif node.op == "get_attr":
                self.values[node] = operator.attrgetter(node.target)(self.program).detach().double().numpy()
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "output":
                logits = self.planes(self.one(node.args[0]))
                return Lowered(self.image, tuple(self.layers), logits)
        raise AssertionError("a graph has an output")

    def one(self, given: Any) -> fx.Node:
        while isinstance(given, list | tuple):
            (given,) = given
        assert isinstance(given, fx.Node)
        return given

    def call(self, node: fx.Node) -> Any:
        """A layer that may still take up what follows it, or planes that are the same values."""
        name = getattr(node.target, "_opname", getattr(node.target, "__name__", str(node.target))).rstrip("_")
        if name not in HANDLERS:
            raise UserError(f"sparse inference knows no {name}, only {', '.join(HANDLERS)}")
        try:
            found = HANDLERS[name](self, *node.args, **node.kwargs)
        except (TypeError, KeyError, AttributeError, AssertionError):
            raise UserError(f"sparse inference knows no {name} as {node} uses it") from None
        if isinstance(found, Layer | Planes) and not _fits(found, node.meta["val"].shape[1:]):
            raise UserError(
                f"sparse inference knows no {name} that makes {tuple(node.meta['val'].shape[1:])} as {node}"
            )
        return found

    def planes(self, node: fx.Node) -> Planes:
        """Its values in memory."""
        value = self.values[node]
        if isinstance(value, Layer):
            self.layers.append(value)
            self.values[node] = value = value.out
        assert isinstance(value, Planes)
        return value

    def open(self, node: fx.Node) -> Layer:
        """A layer that makes its values and that may be changed, since nothing else reads them."""
        value = self.values[node]
        return value if isinstance(value, Layer) and len(node.users) == 1 else _each(self.planes(node))


def _fits(found: Layer | Planes, shape: Sequence[int]) -> bool:
    """Whether torch makes of an image what is made here: planes, or all of their values in a row."""
    planes = found.out if isinstance(found, Layer) else found
    return tuple(shape) in (planes.cells, (planes.size,))


def _each(source: Planes) -> Layer:
    """Its own values once more."""
    channels = np.arange(source.channels)
    none = np.zeros_like(channels)
    out = Planes(source.channels, source.height, source.width, positive=source.positive)
    return Layer(source, out, Weights(channels, channels, none, none, np.ones(len(channels))), np.zeros(len(channels)))


def _conv2d(
    lowering: _Lowering, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Layer:  # fmt: skip
    source, dense = lowering.planes(x), lowering.values[weight]
    row, channel, y, across = dense.nonzero()
    channel = channel + row // (len(dense) // groups) * dense.shape[1]
    weights = Weights(row, channel, y, across, dense[dense != 0])
    bias_ = _bias(lowering, bias, len(dense))
    return _windows(source, weights, bias_, dense.shape[2:], _pair(stride), _pair(padding), _pair(dilation))


def _windows(
    source: Planes, weights: Weights, bias: Array, size: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int],
) -> Layer:  # fmt: skip
    """A sum that moves over the image."""
    cells = zip((source.height, source.width), size, stride, padding, dilation, strict=True)
    high, long = ((length + 2 * pad - far * (k - 1) - 1) // step + 1 for length, k, step, pad, far in cells)
    source.border = max(source.border, *padding)
    spread = replace(weights, y=weights.y * dilation[0], x=weights.x * dilation[1])
    return Layer(source, Planes(len(bias), high, long), spread, bias, stride, padding)


def _linear(lowering: _Lowering, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None) -> Layer:
    source, dense = lowering.planes(x), lowering.values[weight]
    if source.size != dense.shape[1]:
        raise UserError("sparse inference needs linear layers to read all values of an image, or its mean")
    row, place = dense.nonzero()
    channel, y, across = np.unravel_index(place, (source.channels, source.height, source.width))
    weights = Weights(row, channel, y, across, dense[dense != 0])
    return Layer(source, Planes(len(dense), 1, 1), weights, _bias(lowering, bias, len(dense)))


def _bias(lowering: _Lowering, bias: fx.Node | None, rows: int) -> Array:
    found: Array = np.zeros(rows) if bias is None else lowering.values[bias]
    return found


def _batch_norm(
    lowering: _Lowering, x: fx.Node, weight: fx.Node | None, bias: fx.Node | None, mean: fx.Node, var: fx.Node,
    momentum: float, eps: float,
) -> tuple[Layer]:  # fmt: skip
    layer = lowering.open(x)
    if not layer.plain:
        layer = _each(lowering.planes(x))
    rows = len(layer.bias)
    scale = (np.ones(rows) if weight is None else lowering.values[weight]) / np.sqrt(lowering.values[var] + eps)
    shifted = (layer.bias - lowering.values[mean]) * scale + _bias(lowering, bias, rows)
    weights = replace(layer.weights, value=layer.weights.value * scale[layer.weights.row])
    return (replace(layer, weights=weights, bias=shifted),)


def _relu(lowering: _Lowering, x: fx.Node) -> Layer:
    layer = lowering.open(x)
    return replace(layer, floor=0.0, out=replace(layer.out, positive=True))


def _add(lowering: _Lowering, x: fx.Node, other: fx.Node) -> Layer:
    """Into whichever operand is a sum that is still open; the other one has to lie in memory."""
    for one, another in ((x, other), (other, x)):
        layer = lowering.values[one]
        if isinstance(layer, Layer) and len(one.users) == 1 and layer.plain and one is not another:
            return _plus(layer, lowering.planes(another))
    return _plus(_each(lowering.planes(x)), lowering.planes(other))


def _plus(layer: Layer, added: Planes) -> Layer:
    if added.cells != layer.out.cells:
        raise UserError(f"sparse inference knows no addition of {added.cells} to {layer.out.cells}")
    return replace(layer, added=added)


def _max_pool2d(
    lowering: _Lowering, x: fx.Node, size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
) -> Layer:
    layer = _pool(lowering.planes(x), size, stride, padding, dilation)
    if any(layer.offset) and not layer.source.positive:
        raise UserError("sparse inference knows padded max-pools only after a ReLU")
    return replace(layer, maximum=True, bias=np.full_like(layer.bias, -np.inf))


def _avg_pool2d(lowering: _Lowering, x: fx.Node, size: Any, stride: Any = (), padding: Any = 0, *more: Any) -> Layer:
    layer = _pool(lowering.planes(x), size, stride, padding, 1)
    if any(layer.offset):
        raise UserError("sparse inference knows average pools without padding only")
    return layer


def _pool(source: Planes, size: Any, stride: Any, padding: Any, dilation: Any) -> Layer:
    """The mean of each window."""
    (high, long), border = _pair(size), _pair(padding)
    row, y, across = (part.flatten() for part in np.indices((source.channels, high, long)))
    return _windows(
        source, Weights(row, row, y, across, np.full(len(row), 1 / (high * long))), np.zeros(source.channels),
        (high, long), _pair(stride or size), border, _pair(dilation),
    )  # fmt: skip


def _mean(lowering: _Lowering, x: fx.Node, dims: Sequence[int], keep: bool = False) -> Layer:
    source = lowering.planes(x)
    if sorted(dim % 4 for dim in dims) != [2, 3]:
        raise UserError("sparse inference knows means over a whole plane only")
    return _pool(source, (source.height, source.width), (), 0, 1)


def _adaptive_avg_pool2d(lowering: _Lowering, x: fx.Node, size: Any) -> Layer:
    source = lowering.planes(x)
    if _pair(size) != (1, 1):
        raise UserError("sparse inference knows means over a whole plane only")
    return _pool(source, (source.height, source.width), (), 0, 1)


def _same(lowering: _Lowering, x: fx.Node, *_: Any) -> Planes:
    """Another shape of the same values, in the same order."""
    return lowering.planes(x)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        raise UserError(f"sparse inference knows no padding={value!r}, only numbers")
    first, *more = (value,) if isinstance(value, int) else value
    return first, more[0] if more else first


HANDLERS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "getitem": lambda lowering, x, index: lowering.values[x][index],
    "relu": _relu,
    "add": _add,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    **dict.fromkeys(("flatten", "view", "reshape", "dropout", "squeeze"), _same),
}

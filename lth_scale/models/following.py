"""Which channels of a network belong together: found by following each tensor of one forward to where it is used.

Li et al. 2017 (section 3.3) and Fang et al. 2023 (section 3) describe the couplings: an addition makes both branches'
channels the same ones, BatchNorm's parameters and statistics go with the channel, and what consumes it loses an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lth_scale.errors import UserError
from lth_scale.models.coupling import Axis, Group, Space
from lth_scale.models.flops import evaluating
from lth_scale.models.parameters import prunable

Role = Literal["producers", "followers", "consumers"]

_VALUES = ("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh")
_OTHERS = ("hardsigmoid", "hardswish", "hardtanh", "dropout", "alpha_dropout", "clone", "contiguous")
_PLANES = ("dropout", "max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
_PASSING = (*_VALUES, *_OTHERS, *(f"{name}{dims}d" for name in _PLANES for dims in (1, 2, 3)))
"""Functions, and their in-place forms, that treat every channel alike and by itself, and leave it in its place."""


def groups(model: nn.Module, shape: tuple[int, ...], strict: bool = True) -> list[Group]:
    """The channels of a network that can be removed, in the order in which a forward computes them.

    Left out are the image's channels, the logits, and channels that a mask or removal cannot reach everywhere: those
    that unprunable weights read, that are padded, or that meet something without channels of its own to remove.

    Args:
        model: on any device, ``meta`` included; left as it is.
        shape: of one sample, without the batch: (channels, height, width).
        strict: otherwise channels that meet what cannot be followed are left out, like those of a transformer outside
            of its MLPs, and nothing is raised.

    Raises:
        UserError: the network uses something else than convolutions, linear layers, BatchNorm, additions and products
            of channels, poolings and functions of single values; names it and its layer.
    """
    following = _Following(model, strict)
    like = next(model.parameters())
    image = torch.zeros(1, *shape, device=like.device, dtype=like.dtype)
    following.values[id(image)] = image, None
    with evaluating(model), following.layers(), following:
        output = model(image)
    for values in _tensors(output):
        following.fix(following.lookup(values, "the output"))
    return following.groups()


@dataclass(frozen=True)
class _Tag:
    """The channels of a tensor, and the dimension in which they lie."""

    space: Space
    dim: int


class _Following(TorchFunctionMode):
    """Knows the channels of every tensor that the network computes; None for those that have none to remove."""

    def __init__(self, model: nn.Module, strict: bool) -> None:
        super().__init__()
        self.model, self.strict = model, strict
        self.foreign: set[str] = set()
        self.prunable = {tensor.name for tensor in prunable(model)}
        stored = [*model.named_parameters(), *model.named_buffers()]
        self.stored = {id(tensor): (name, tensor) for name, tensor in stored}
        self.values: dict[int, tuple[torch.Tensor, _Tag | None]] = {id(t): (t, None) for _, t in stored}
        self.axes: dict[tuple[str, int], tuple[Role, Space]] = {}
        self.stack: list[str] = []
        convolutions = dict.fromkeys(("conv1d", "conv2d", "conv3d"), self._convolution)
        self.producing: dict[str, Callable[..., _Tag]] = {**convolutions, "linear": self._linear}
        self.handlers: dict[str, Callable[..., _Tag | None]] = {
            **dict.fromkeys(("add", "iadd", "radd", "sub", "isub", "mul", "imul", "rmul"), self._meeting),
            **dict.fromkeys(_PASSING, lambda output, values, *args, **kwargs: self._tag(values)),
            "batch_norm": self._batch_norm,
            "mean": self._mean,
            "flatten": self._flatten,
            "getitem": self._getitem,
            "pad": self._pad,
        }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), func.__name__.strip("_")
        tags = [self.lookup(values, name) for values in _tensors((args, kwargs))]
        output = func(*args, **kwargs)
        made, tag = list(_tensors(output)), None
        if name in self.producing or (any(tags) and (made or name == "setitem")):
            try:
                tag = self._handled(name, tags, output, *args, **kwargs)
            except UserError:
                if self.strict:
                    raise
                self._leave_out(tags, (args, kwargs))
        elif made and not self.strict and name not in self.handlers:
            self._leave_out([], (args, kwargs))
        self.values.update({id(values): (values, tag) for values in made})
        return output

    def _handled(self, name: str, tags: Sequence[_Tag | None], output: Any, *args: Any, **kwargs: Any) -> _Tag | None:
        """The channels of what a function made. Raises UserError where they cannot be followed."""
        handler = self.producing.get(name) or self.handlers.get(name)
        if handler is None or (any(tags[1:]) and handler != self._meeting):
            raise self.refusal(name)
        return handler(output, *args, **kwargs)

    def _leave_out(self, tags: Sequence[_Tag | None], given: Any) -> None:
        """Nothing of what a function has been given may be removed, weights included."""
        for tag in tags:
            self.fix(tag)
        self.foreign.update(self.stored[id(x)][0] for x in _tensors(given) if id(x) in self.stored)

    @contextmanager
    def layers(self) -> Iterator[None]:
        """Keeps the names of the modules that are being computed, innermost last."""

        def leave(*_: Any) -> None:
            self.stack.pop()

        with ExitStack() as handles:
            for name, module in self.model.named_modules():
                enter = module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name))
                handles.callback(enter.remove)
                handles.callback(module.register_forward_hook(leave).remove)
            yield

    def refusal(self, function: str) -> UserError:
        """Names where the network does what cannot be followed."""
        name = self.stack[-1] if self.stack else ""
        layer = f"{name or 'the network'} ({type(self.model.get_submodule(name)).__name__})"
        return UserError(
            f"channels cannot be followed through {function} in {layer}; channel tickets need convolutional or fully"
            " connected networks, without attention, concatenation or norm layers other than BatchNorm"
        )

    def lookup(self, values: torch.Tensor, function: str) -> _Tag | None:
        """The channels of a tensor; UserError if it comes from where this cannot see."""
        if id(values) not in self.values:
            if not self.strict:
                return None
            raise self.refusal(f"{function} of a tensor of unknown origin")
        return self.values[id(values)][1]

    @staticmethod
    def fix(tag: _Tag | None) -> None:
        """Channels that nobody may remove."""
        if tag is not None:
            tag.space.root().fixed = True

    def groups(self) -> list[Group]:
        """What was found, once the network has run."""
        found: dict[Space, dict[Role, list[Axis]]] = {}
        shapes = {name: tensor.shape for name, tensor in self.stored.values()}
        for (name, dim), (role, space) in self.axes.items():
            places = found.setdefault(space.root(), {"producers": [], "followers": [], "consumers": []})
            places[role].append(Axis(name, dim, shapes[name][dim] // space.root().size))
        return [
            Group(space.size, **{role: tuple(axes) for role, axes in places.items()})
            for space, places in found.items()
            if not space.fixed
            and places["consumers"]
            and any(axis.name in self.prunable for axis in places["producers"])
            and not any(axis.name in self.foreign for axes in places.values() for axis in axes)
        ]

    def _tag(self, values: torch.Tensor) -> _Tag | None:
        return self.values[id(values)][1]

    def _attach(self, role: Role, tensor: torch.Tensor | None, dim: int, space: Space) -> None:
        """Enter a place of the channels; a tensor that is used twice joins the channels of both uses."""
        if tensor is None:
            return
        name = self.stored[id(tensor)][0] if id(tensor) in self.stored else ""
        if not name or (role == "consumers" and name not in self.prunable):
            space.root().fixed = True
        if name:
            space.join(self.axes.setdefault((name, dim), (role, space))[1])

    def _produced(self, weight: torch.Tensor, bias: torch.Tensor | None, dim: int) -> _Tag:
        space = Space(weight.shape[0])
        self._attach("producers", weight, 0, space)
        self._attach("followers", bias, 0, space)
        return _Tag(space, dim)

    def _consumed(self, tag: _Tag | None, weight: torch.Tensor, dim: int, function: str) -> None:
        if tag is not None:
            if tag.dim != dim:
                raise self.refusal(f"{function} over another dimension than that of channels")
            self._attach("consumers", weight, 1, tag.space)

    def _convolution(
        self, output: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None,
        stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
    ) -> _Tag:  # fmt: skip
        """A grouped convolution gives every group of inputs its own outputs: they stay or go together."""
        tag, produced = self._tag(input), self._produced(weight, bias, 1)
        if groups == 1:
            self._consumed(tag, weight, 1, "convolution")
        elif tag is None:
            self.fix(produced)
        else:
            tag.space.join(produced.space, groups)
        return produced

    def _linear(
        self, output: torch.Tensor, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> _Tag:
        self._consumed(self._tag(input), weight, input.dim() - 1, "linear")
        return self._produced(weight, bias, output.dim() - 1)

    def _batch_norm(
        self, output: torch.Tensor, input: torch.Tensor, mean: torch.Tensor | None, var: torch.Tensor | None,
        weight: torch.Tensor | None = None, bias: torch.Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> _Tag | None:  # fmt: skip
        if tag := self._tag(input):
            for tensor in (weight, bias, mean, var):
                self._attach("followers", tensor, 0, tag.space)
        return tag

    def _meeting(self, output: torch.Tensor, *operands: Any, **kwargs: Any) -> _Tag | None:
        """Channels that are added or multiplied are the same ones; what meets anything else has to stay."""
        tensors = list(_tensors((operands, kwargs)))
        known = [(x, tag) for x in tensors if (tag := self._tag(x))]
        if len({tag.dim - x.dim() for x, tag in known}) > 1:
            raise self.refusal("a sum or product of different dimensions")
        back = known[0][1].dim - known[0][0].dim()
        space = Space(output.shape[back])
        for x in tensors:
            if x.dim() >= -back:
                tag = self._tag(x)
                if tag is not None and x.shape[back] == output.shape[back]:
                    space.join(tag.space)
                elif tag is not None or x.shape[back] > 1:
                    self.fix(tag or _Tag(space, 0))
        return _Tag(space, output.dim() + back)

    def _mean(self, output: torch.Tensor, input: torch.Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> _Tag:
        """Over later dimensions than the channels', which then stay where they are."""
        tag = self._tag(input)
        dims = () if dim is None else dim if isinstance(dim, Sequence) else (dim,)
        if tag is None or not dims or min(d % input.dim() for d in dims) <= tag.dim:
            raise self.refusal("mean over the channels or before them")
        return tag

    def _flatten(self, output: torch.Tensor, input: torch.Tensor, start: int = 0, end: int = -1) -> _Tag:
        tag = self._tag(input)
        if tag is None or start % input.dim() < tag.dim:
            raise self.refusal("flatten of the channels with what comes before them")
        return tag

    def _getitem(self, output: torch.Tensor, input: torch.Tensor, index: Any) -> _Tag:
        """Slices of other dimensions, such as every other pixel."""
        tag, index = self._tag(input), index if isinstance(index, tuple) else (index,)
        if tag is None or not all(isinstance(part, slice) for part in index) or index[tag.dim :][:1] != (slice(None),):
            raise self.refusal("indexing")
        return tag

    def _pad(self, output: torch.Tensor, input: torch.Tensor, pad: Sequence[int], *_: Any, **__: Any) -> _Tag | None:
        """Padded pixels change nothing; among padded channels, those that are real have to stay."""
        tag = self._tag(input)
        assert tag is not None
        last = 2 * (input.dim() - 1 - tag.dim)
        if any(pad[last : last + 2]):
            self.fix(tag)
            return None
        return tag


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)

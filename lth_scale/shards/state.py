"""Between what a rank holds and states on disk: written in parts, read back by ranges, compared bit for bit.

Tensors are walked through in chunks, so none of it needs memory that grows with the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from lth_scale import world
from lth_scale.checkpoint import Entry, Part, Source, State
from lth_scale.errors import UserError
from lth_scale.shards.base import LocalShard, Shards

CHUNK = 1 << 20  # numbers compared or copied at a time
EMA = "ema"
"""The key under which averaged weights stand beside the optimizer's state."""


def held(shards: Shards, shard: LocalShard) -> dict[str, torch.Tensor]:
    """Optimizer state of a part, and its averaged weights where there are any."""
    average = shards.averages.get(shard.name)
    return shards.state(shard) | ({} if average is None else {EMA: average})


def parts(shards: Shards, optimizer: bool = True) -> Iterator[Part]:
    """What this rank writes of the state: over all ranks every number once. Without ``optimizer`` averages remain."""
    for shard in shards.local():
        yield from _owned(shards, f"weights/{shard.name}", shard, shard.weights)
        for key, tensor in held(shards, shard).items():
            if optimizer or key == EMA:
                yield from _owned(shards, f"optimizer/{shard.name}/{key}", shard, tensor)
    if world.first():
        for name, buffer in shards.buffers().items():
            yield Part(f"buffers/{name}", 0, buffer.detach().reshape(-1), tuple(buffer.shape))


def _owned(shards: Shards, key: str, shard: LocalShard, tensor: torch.Tensor) -> Iterator[Part]:
    tensor, owner = tensor.detach(), world.first() if shards.replicated else shard.offset == 0 and len(shard) > 0
    if tensor.shape != shard.weights.shape:  # a step counter, or a factored moment: small, and whole on every rank
        if owner:
            yield Part(key, 0, tensor.reshape(-1), tuple(tensor.shape))
        return
    size, here, all_ranks = tensor.numel(), world.rank(), world.size()
    mine = slice(size * here // all_ranks, size * (here + 1) // all_ranks) if shards.replicated else slice(0, size)
    if mine.start < mine.stop or (owner and not size):
        yield Part(key, shard.offset + mine.start, tensor.reshape(-1)[mine], shard.shape)


def capture(shards: Shards, step: int) -> State:
    """A copy of the whole state on the CPU, of a rank that holds everything."""
    assert shards.replicated
    return State(
        {s.name: _copy(s.weights) for s in shards.local()},
        {name: _copy(buffer) for name, buffer in shards.buffers().items()},
        {s.name: {k: _copy(v) for k, v in entry.items()} for s in shards.local() if (entry := held(shards, s))},
        step,
    )


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


@torch.no_grad()
def restore(shards: Shards, source: Source) -> None:
    """Copy a state into the model and its optimizers; one without optimizer state makes theirs fresh.

    Raises UserError naming parameters or buffers that only one of the two has.
    """
    entries = source.entries()
    _require_same_names("parameters", (s.name for s in shards.local()), _names(entries, "weights"))
    _require_same_names("buffers", shards.buffers(), _names(entries, "buffers"))
    _allocate(shards, source)
    for shard in shards.local():
        _fill(shard.weights, source, f"weights/{shard.name}", shard.offset)
        for key, tensor in held(shards, shard).items():
            if tensor.shape == shard.weights.shape:
                _fill(tensor, source, f"optimizer/{shard.name}/{key}", shard.offset)
    for name, buffer in shards.buffers().items():
        _fill(buffer, source, f"buffers/{name}", 0)
    shards.refresh()


def _names(entries: Iterable[str], part: str) -> list[str]:
    return [key.removeprefix(f"{part}/") for key in entries if key.startswith(f"{part}/")]


def _require_same_names(what: str, here: Iterable[str], there: Iterable[str]) -> None:
    if odd := sorted(set(here) ^ set(there)):
        raise UserError(f"the stored state and the model have different {what}: {', '.join(odd[:5])}")


def _allocate(shards: Shards, source: Source) -> None:
    wanted: dict[str, dict[str, torch.Tensor | torch.dtype]] = {}
    shapes = {shard.name: shard.shape for shard in shards.local()}
    for name, key, entry in _optimizer(source.entries()):
        beside = entry.shape == shapes[name]
        whole = f"optimizer/{name}/{key}"
        value = entry.dtype if beside else source.read(whole, 0, entry.numel).reshape(entry.shape)
        wanted.setdefault(name, {})[key] = value
    averaged = {name for name, keys in wanted.items() if keys.pop(EMA, None) is not None}
    shards.averages = {s.name: torch.zeros_like(s.weights) for s in shards.local() if s.name in averaged}
    shards.allocate(wanted)


def _optimizer(entries: Mapping[str, Entry]) -> Iterator[tuple[str, str, Entry]]:
    """(Parameter, state key, entry)."""
    for full, entry in entries.items():
        if full.startswith("optimizer/"):
            name, _, key = full.removeprefix("optimizer/").rpartition("/")
            yield name, key, entry


def _fill(tensor: torch.Tensor, source: Source, key: str, offset: int) -> None:
    if not tensor.is_contiguous():  # channels last: only whole tensors are laid out so
        tensor.copy_(source.read(key, 0, tensor.numel()).reshape(tensor.shape))
        return
    for start, piece in chunks(tensor):
        piece.copy_(source.read(key, offset + start, offset + start + len(piece)))


def chunks(tensor: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """(Start, flat piece), in order; views of a contiguous tensor."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, len(flat), CHUNK):
        yield start, flat[start : start + CHUNK]


@torch.no_grad()
def differences(shards: Shards, source: Source) -> list[str]:
    """Keys of the state on this rank whose bits are not the source's, or that only one of the two has."""
    expected, found = dict(source.entries()), dict(_here(shards))
    wrong = [key for key, (here, at) in found.items() if not _same(here, expected.get(key), source, key, at)]
    empty = {shard.name for shard in shards.local() if not len(shard) and shard.numel}
    missing = [k for k in expected if k not in found and not (k.startswith("optimizer/") and k.split("/")[1] in empty)]
    return sorted(wrong + missing)


def _here(shards: Shards) -> Iterator[tuple[str, tuple[torch.Tensor, int]]]:
    """(Key, (tensor, where it starts in the whole one)) of everything on this rank."""
    for shard in shards.local():
        yield f"weights/{shard.name}", (shard.weights, shard.offset)
        for key, tensor in held(shards, shard).items():
            beside = tensor.shape == shard.weights.shape
            yield f"optimizer/{shard.name}/{key}", (tensor, shard.offset if beside else 0)
    for name, buffer in shards.buffers().items():
        yield f"buffers/{name}", (buffer, 0)


def _same(tensor: torch.Tensor, entry: Entry | None, source: Source, key: str, offset: int) -> bool:
    if entry is None or entry.dtype != tensor.dtype or offset + tensor.numel() > entry.numel:
        return False
    return all(
        torch.equal(_bits(piece), _bits(source.read(key, offset + start, offset + start + len(piece))))
        for start, piece in chunks(tensor)
    )


def _bits(flat: torch.Tensor) -> torch.Tensor:
    return flat.cpu().contiguous().view(torch.uint8)

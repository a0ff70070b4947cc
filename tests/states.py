"""Training states of every dtype, cut over simulated ranks; and real processes that talk over gloo."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from proofs import forks

from lth_scale.checkpoint import Part, Source, State, writing
from lth_scale.checkpoint.source import assembled

SHAPES = {
    "weights/fc.weight": ((6, 5), torch.float32),
    "weights/fc.bias": ((6,), torch.float32),
    "weights/half": ((3, 3), torch.bfloat16),
    "weights/none": ((0, 4), torch.float32),
    "buffers/bn.count": ((), torch.int64),
    "buffers/bn.flags": ((5,), torch.bool),
    "buffers/bn.mean": ((6,), torch.float64),
    "optimizer/fc.weight/exp_avg": ((6, 5), torch.float32),
    "optimizer/fc.weight/step": ((), torch.float32),
    "optimizer/fc.bias/narrow": ((6,), torch.float8_e4m3fn),
    "optimizer/half/exp_avg": ((3, 3), torch.float16),
}


def bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Any bits; of floats a third are -0.0, NaN or infinite."""
    size = torch.Size(shape).numel()
    drawn = torch.randint(0, 256, (size, dtype.itemsize), dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        drawn &= 1
    if dtype.is_floating_point:
        odd = torch.tensor([-0.0, torch.nan, -torch.inf]).to(dtype).view(torch.uint8).reshape(3, -1)
        which = torch.randint(0, 9, (size,), generator=generator)
        drawn[which < 3] = odd[which[which < 3]]
    return drawn.reshape(-1).view(dtype).reshape(shape)


def state(seed: int = 0, step: int = 7) -> State:
    generator = torch.Generator().manual_seed(seed)
    return assembled({key: bits(shape, dtype, generator) for key, (shape, dtype) in SHAPES.items()}, step)


def parts(of: State, rank: int, cuts: Mapping[str, Sequence[int]]) -> Iterator[Part]:
    """A rank's ranges, given where each flattened tensor is cut; a tensor without numbers is the first rank's."""
    for key, tensor in of.flat().items():
        edges = [0, *sorted(cuts[key]), tensor.numel()]
        data = tensor.reshape(-1)[edges[rank] : edges[rank + 1]]
        if rank == 0 or len(data):
            yield Part(key, edges[rank], data, tuple(tensor.shape))


def even(of: State, world: int) -> dict[str, list[int]]:
    """Cuts into equal pieces."""
    return {key: [t.numel() * rank // world for rank in range(1, world)] for key, t in of.flat().items()}


def write(folder: Path, of: State, cuts: Mapping[str, Sequence[int]]) -> int:
    """What ranks write together, by this process alone, in any number of ranks."""
    scratch, world = writing.begin(folder), 1 + len(next(iter(cuts.values())))
    written = [writing.write_rank(folder, scratch, rank, parts(of, rank, cuts)) for rank in range(world)]
    return writing.finish(folder, scratch, written, of.step, {"seconds": 1.5})


def octets(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(source: Source, of: State) -> bool:
    """Whether a source reads as a state, bit for bit, by means of its own."""
    table = of.flat()
    return source.entries().keys() == table.keys() and all(
        octets(source.read(key, 0, tensor.numel())) == octets(tensor) for key, tensor in table.items()
    )


# --- real processes ---------------------------------------------------------------------------------------------------


def spawned(world: int, folder: Path, work: Callable[[int], object]) -> list[int]:
    """The exit codes of forked processes of one gloo group, which end within a minute."""
    folder.mkdir(exist_ok=True)
    return forks(world, lambda rank: _joined(rank, world, folder, work))


def _joined(rank: int, world: int, folder: Path, work: Callable[[int], object]) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    timeout = datetime.timedelta(seconds=40)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world, timeout=timeout)
    try:
        work(rank)
    finally:
        dist.destroy_process_group()

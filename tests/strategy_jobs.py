"""Small trainings under every strategy, looked at through the adapter; and how to run them on several processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.data import DataLoader

from lth_scale.config import Hardware, Train
from lth_scale.errors import UserError
from lth_scale.masks import Mask
from lth_scale.shards import Shards
from lth_scale.training import strategies
from lth_scale.training.masking import Masking

STEPS = 4


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width + 2), nn.Linear(width + 2, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(self.first(x).relu())


class Net(nn.Module):
    """Odd sizes, a tensor of one number, blocks and what is not in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.blocks = nn.Sequential(Block(27), Block(27))
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(27, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.conv(x).flatten(1)) * self.scale)


def net(seed: int = 0) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net()


# Fused kernels round the last few numbers of a tensor otherwise than the rest, so their bits depend on where it is cut.
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, foreach=False),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, foreach=False),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, foreach=False),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=False),
    "fused sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True),
    "fused adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
}


class Module(pl.LightningModule):
    def __init__(self, strategy: str, optimizer: str, model: Net, clip: float = 0, precision: str = "fp32") -> None:
        super().__init__()
        self.model, self.strategy, self.optimizer, self.clip = model, strategy, optimizer, clip
        self.bf16 = precision == "bf16"
        self.losses: list[float] = []
        self.norms: list[float] = []

    def configure_model(self) -> None:
        if self.strategy == "fsdp2" and dist.is_initialized():
            strategies.shard(self.model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        named = dict(self.model.named_parameters())
        groups = [
            {"params": [p for n, p in named.items() if "bias" not in n], "weight_decay": 0.05},
            {"params": [p for n, p in named.items() if "bias" in n], "weight_decay": 0.0},
        ]
        return OPTIMIZERS[self.optimizer](groups)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext():
            loss = functional.cross_entropy(self.model(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        if self.clip and not self.strategy.startswith("deepspeed"):
            self.norms.append(float(full(nn.utils.clip_grad_norm_(self.model.parameters(), self.clip))))


def micro_batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randn(4, 1, 5, 5, generator=generator), torch.randint(7, (4,), generator=generator)


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Watch(pl.Callback):
    """Keeps the adapter, and calls back at the moments that matter."""

    def __init__(self, **do: Callable[[Shards], None]) -> None:
        self.do = do

    def _call(self, moment: str) -> None:
        if moment in self.do:
            self.do[moment](self.shards)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.shards = module.shards = strategies.adapter(trainer, module.model)
        self._call("start")

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._call("gradients")

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if isinstance(trainer.strategy, strategies.Zero) and module.clip:
            module.norms.append(float(trainer.strategy.optimizers[0]._global_grad_norm))
        self._call("step")

    def on_train_end(self, *_: Any) -> None:
        self._call("end")


def fit(
    strategy: str,
    optimizer: str,
    model: Net,
    first: int = 0,
    steps: int = STEPS,
    accumulate: int = 1,
    clip: float = 0,
    precision: str = "fp32",
    **do: Callable[[Shards], None],
) -> Module:
    """Train on this rank's micro-batches: ``accumulate`` of every global batch."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    hardware = Hardware(accelerator="cpu", strategy=strategy, devices=ranks, precision=precision)
    batches = [
        micro_batch((step * ranks + rank) * accumulate + part)
        for step in range(first, first + steps)
        for part in range(accumulate)
    ]
    module = Module(strategy, optimizer, model, clip, precision)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy=strategies.make(hardware, Train(clip=clip), ranks) if ranks > 1 else "auto",
        devices=ranks,
        plugins=strategies.plugins(hardware),
        callbacks=[Watch(**do)],
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, train_dataloaders=DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == steps
    return module


def gather(shards: Shards, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors, put together from every rank's parts; proves that each place is there exactly once."""
    mine = {
        s.name: (s.offset, parts[s.name].detach().clone().reshape(-1))
        for s in shards.local()
        if s.name in parts and len(s)
    }
    everybody: list[Any] = [mine]
    if shards.group is not None:
        everybody = [None] * dist.get_world_size(shards.group)
        dist.all_gather_object(everybody, mine, group=shards.group)
    whole: dict[str, torch.Tensor] = {}
    for shard in shards.local():
        seen = torch.zeros(shard.numel, dtype=torch.int64)
        flat = torch.zeros(shard.numel)
        for theirs in everybody:
            offset, values = theirs.get(shard.name, (0, torch.zeros(0)))
            flat[offset : offset + len(values)] = values
            seen[offset : offset + len(values)] += 1
        assert (seen == 1).all() or not any(shard.name in theirs for theirs in everybody), shard.name
        whole[shard.name] = flat.reshape(shard.shape)
    return whole


def weights(shards: Shards) -> dict[str, torch.Tensor]:
    return gather(shards, {s.name: s.weights for s in shards.local()})


def state(shards: Shards) -> dict[str, dict[str, torch.Tensor]]:
    keys = sorted({key for s in shards.local() for key in shards.state(s)})
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key in keys:
        parts = {s.name: shards.state(s)[key] for s in shards.local() if key in shards.state(s)}
        if key == "step":
            found[key] = {name: value.clone() for name, value in parts.items()}
        else:
            found[key] = gather(shards, parts)
    return found


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n].contiguous().view(torch.int32), other[n].contiguous().view(torch.int32)) for n in one
    )


def training(strategy: str, optimizer: str, **options: Any) -> dict[str, Any]:
    """What a run saw and left: losses, every reduced gradient, weights, state."""
    seen: dict[str, Any] = {"gradients": []}

    def gradients(shards: Shards) -> None:
        if found := shards.gradients():
            seen["gradients"].append(gather(shards, found))

    def end(shards: Shards) -> None:
        seen["weights"], seen["state"] = weights(shards), state(shards)

    seen["losses"] = fit(strategy, optimizer, net(), gradients=gradients, end=end, **options).losses
    return seen


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(micro_batch(7)[0])


@torch.no_grad()
def write(shards: Shards, source: Mapping[str, torch.Tensor], parts: Mapping[str, torch.Tensor]) -> None:
    for s in shards.local():
        if s.name in parts:
            parts[s.name].reshape(-1).copy_(source[s.name].reshape(-1)[s.offset : s.offset + len(s)])


def writing(strategy: str) -> dict[str, Any]:
    """Other weights are written at the start and at the end; the model is asked before and after refresh."""
    seen: dict[str, Any] = {"stale": [], "fresh": []}

    def rewrite(seed: int) -> Callable[[Shards], None]:
        def do(shards: Shards) -> None:
            logits(shards.module)  # gathers
            write(shards, dict(net(seed).named_parameters()), {s.name: s.weights for s in shards.local()})
            seen["stale"].append(torch.equal(logits(shards.module), logits(net(seed))))
            shards.refresh()
            seen["fresh"].append(torch.equal(logits(shards.module), logits(net(seed))))

        return do

    seen["losses"] = fit(
        strategy, "sgd", net(), start=rewrite(5), step=lambda s: logits(s.module), end=rewrite(6)
    ).losses
    return seen


def carried(shards: Shards, left: Mapping[str, Any]) -> None:
    """Give an engine what another left, and prove that it reads the same there."""
    write(shards, left["weights"], {s.name: s.weights for s in shards.local()})
    entries: dict[str, dict[str, Any]] = {s.name: {} for s in shards.local()}
    for s in shards.local():
        for key in left["state"]:
            entries[s.name][key] = torch.tensor(2.0) if key == "step" else torch.float32
    shards.allocate(entries)
    for key, values in left["state"].items():
        parts = {s.name: shards.state(s)[key] for s in shards.local() if len(s)}
        assert key == "step" or not any(part.any() for part in parts.values())
        if key != "step":
            write(shards, values, parts)
    assert all(same(values, left["state"][key]) for key, values in state(shards).items() if key != "step")
    shards.refresh()


def continuing(strategy: str, optimizer: str, keep: bool = True) -> dict[str, torch.Tensor]:
    """The weights after two steps, a new engine that is given what they left, and two more."""
    left: dict[str, Any] = {}

    def leave(shards: Shards) -> None:
        left.update(weights=weights(shards), state=state(shards) if keep else {})

    fit(strategy, optimizer, net(), steps=2, end=leave)
    fit(strategy, optimizer, net(), first=2, steps=2, start=lambda shards: carried(shards, left), end=leave)
    return left["weights"]


def mask() -> Mask:
    generator = torch.Generator().manual_seed(3)
    return Mask({n: torch.rand(p.shape, generator=generator) < 0.3 for n, p in net().named_parameters() if p.ndim > 1})


def copies(shards: Shards) -> dict[str, torch.Tensor]:
    """The weights that the model computes with."""
    parameters = dict(shards.module.named_parameters())
    if all(hasattr(parameter, "ds_tensor") for parameter in parameters.values()):
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}
    return {name: full(parameter.detach()).clone() for name, parameter in parameters.items()}


def masked(strategy: str, optimizer: str, clip: float = 0, work: str = "gradients weights", steps: int = 20) -> Any:
    """What came back of pruned weights in masters, state and copies; and norms as they should be and as they were."""
    seen: dict[str, Any] = {"expected": []}

    def start(shards: Shards) -> None:
        kept = mask()
        source = {n: p.where(kept[n], 0.0) if n in kept else p for n, p in net().named_parameters()}
        write(shards, source, {s.name: s.weights for s in shards.local()})
        shards.refresh()
        seen["masking"] = Masking(shards, kept)
        if "weights" in work:
            seen["masking"].install()

    def gradients(shards: Shards) -> None:
        if "gradients" in work:
            for s in shards.local():
                if s.name in seen["masking"]._masks and s.name in shards.gradients():
                    dropped = ~mask()[s.name].reshape(-1)[s.offset : s.offset + len(s)]
                    shards.gradients()[s.name].view(-1)[dropped.nonzero()[:1]] = float("inf")
            seen["masking"].gradients()
        whole = gather(shards, shards.gradients())
        seen["expected"].append(float(torch.cat([g.reshape(-1).double() for g in whole.values()]).norm()))

    def end(shards: Shards) -> None:
        seen["revived"] = sum(seen["masking"].revived().values())
        seen["weights"], seen["copies"] = weights(shards), copies(shards)

    seen["norms"] = fit(
        strategy, optimizer, net(), steps=steps, clip=clip, start=start, gradients=gradients, end=end
    ).norms
    del seen["masking"]
    revived: Any = [None] * dist.get_world_size()
    dist.all_gather_object(revived, seen["revived"])
    return seen | {"revived": sum(revived)}


def diverging(strategy: str, clip: float) -> Any:
    """The weights after a step with an infinite gradient, or the message of what was raised."""
    seen: dict[str, Any] = {}

    def poison(shards: Shards) -> None:
        place = 3 - next(s.offset for s in shards.local() if s.name == "head.weight")
        if place >= 0 and "head.weight" in shards.gradients():
            shards.gradients()["head.weight"].view(-1)[place] = float("inf")

    try:
        fit(strategy, "sgd", net(), clip=clip, gradients=poison, end=lambda s: seen.update(weights=weights(s)))
    except UserError as error:
        return str(error)
    return seen["weights"]


def sizes(strategy: str) -> list[int]:
    """How many numbers each rank holds, of parts that ``weights`` proves to make up the whole."""
    seen: dict[str, int] = {}

    def start(shards: Shards) -> None:
        assert same(weights(shards), dict(net().named_parameters()))
        assert [s.name for s in shards.local()] == [n for n, _ in net().named_parameters()]
        seen["held"] = sum(map(len, shards.local()))

    fit(strategy, "sgd", net(), steps=1, start=start)
    held: Any = [None] * dist.get_world_size()
    dist.all_gather_object(held, seen["held"])
    return held


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
    return function, arguments, options


def _rank(rank: int, ranks: int, port: int, calls: Sequence[Call], out: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ["WORLD_SIZE"] = str(ranks)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    answers = [function(*arguments, **options) for function, arguments, options in calls]
    if rank == 0:
        torch.save(answers, out)
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(ranks: int, calls: Sequence[Call], scratch: Path) -> list[Any]:
    """What the first of several processes answers to each call, all made by every process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_rank, args=(ranks, port, calls, scratch / "answers.pt"), nprocs=ranks)
    answers: list[Any] = torch.load(scratch / "answers.pt", weights_only=False)
    return answers

"""Small trainings under every strategy, looked at through the adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.data import DataLoader

from lth_scale.config import Hardware, Train
from lth_scale.shards import Shards
from lth_scale.training import strategies

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


@torch.no_grad()
def write(shards: Shards, source: Mapping[str, torch.Tensor], parts: Mapping[str, torch.Tensor]) -> None:
    for s in shards.local():
        if s.name in parts:
            parts[s.name].reshape(-1).copy_(source[s.name].reshape(-1)[s.offset : s.offset + len(s)])

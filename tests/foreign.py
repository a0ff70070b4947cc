"""A LightningModule and a Trainer as somebody else would write them, under either of Lightning's two names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

NAMESPACES = ["pytorch_lightning", "lightning.pytorch"]
SAMPLES, BATCH = 60, 10


class Odd(nn.Module):
    """Attention, a tied pair, BatchNorm, a frozen layer, a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.first = nn.Linear(8, 8, bias=False)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.gain = nn.Parameter(torch.ones(3, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.norm(x.mean(1) * self.gain.mean(0))
        return self.head(self.frozen(functional.relu(self.second(functional.relu(self.first(x))))))


PRUNED = ["net.embed.weight", "net.attention.in_proj_weight", "net.attention.out_proj.weight", "net.first.weight"]
PRUNED += ["net.head.weight"]
NUMEL = 32 + 192 + 64 + 64 + 24


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    """Two parameter groups, one of which decays."""
    flat = [p for p in net.parameters() if p.dim() < 2]
    deep = [p for p in net.parameters() if p.dim() >= 2]
    return torch.optim.AdamW([{"params": deep, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}], 1e-2)


def module(namespace: str, optimizer: Any = sgd, scheduler: Any = None, net: Any = Odd, seed: int = 0) -> Any:
    """A LightningModule; ``scheduler`` maps (optimizer, steps) to what Lightning takes."""
    lightning = importlib.import_module(namespace)

    class Foreign(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.net = net()
            self.seen: list[int] = []

        def training_step(self, batch: Any, index: int) -> Any:
            self.seen.append(int(batch[2][0]))
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss, on_step=True, on_epoch=False)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("validation", functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            made = optimizer(self.net)
            return made if scheduler is None else {"optimizer": made, "lr_scheduler": scheduler(made)}

    return Foreign()


def data(samples: int = SAMPLES) -> Dataset[Any]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(samples, 5, 4, generator=generator)
    return TensorDataset(inputs, torch.randint(3, (samples,), generator=generator), torch.arange(samples))


class Epochs(torch.utils.data.Sampler[int]):
    """An order that depends on the epoch alone."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples, self.epoch = samples, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Any:
        return iter(torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.epoch)).tolist())


def loader(**settings: Any) -> DataLoader[Any]:
    return DataLoader(data(), BATCH, sampler=Epochs(), **settings)


def trainer(namespace: str, folder: Path, callbacks: Any = (), **settings: Any) -> Any:
    lightning = importlib.import_module(namespace)
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    quiet |= dict(accelerator="cpu", devices=1, max_epochs=3, default_root_dir=folder)
    return lightning.Trainer(callbacks=callbacks, **(quiet | settings))


def fit(namespace: str, folder: Path, callbacks: Any = (), make: Any = None, val: bool = False, **settings: Any) -> Any:
    """One ``fit`` with a fresh Trainer; returns the module, with its Trainer."""
    made = make() if make else module(namespace)
    ckpt_path = settings.pop("ckpt_path", None)
    loaders = [loader(), loader()] if val else [loader()]
    trainer(namespace, folder, callbacks, **settings).fit(made, *loaders, ckpt_path=ckpt_path)
    return made

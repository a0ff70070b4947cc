"""Programs that run as ranks, to be stopped and killed: ``python rank_programs.py NAME FOLDER [WORD...]``.

Each leaves, in FOLDER, what it did by rank.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy

from lth_scale import ranks, world
from lth_scale.config import Hardware, Train
from lth_scale.errors import NotReady
from lth_scale.training import environment, stopping, strategies


def pause() -> None:
    """What a step takes."""
    time.sleep(float(os.environ.get("PAUSE", "0.01")))


def devices() -> int:
    return environment.cluster().world_size()


def note(folder: Path, name: str, told: object) -> None:
    """Written whole or not at all: a test reads it while this goes on."""
    path = folder / f"{name}.{world.rank()}"
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(str(told))
    temporary.replace(path)


def leave_pid(folder: Path, step: int) -> None:
    if step == 3:
        note(folder, "pid", os.getpid())


class Tiny(pl.LightningModule):
    """Four weights, and a step that takes a moment."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.layer, self.folder, self.step = torch.nn.Linear(4, 1), folder, 0

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            strategies.shard(self.layer)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        pause()
        leave_pid(self.folder, index)
        self.step = index + 1
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(10_000, 4), batch_size=1)


class OnePart(pl.Callback):
    """Lightning's hooks for one part, as ``Parts`` calls them."""

    def __init__(self, part: stopping.Stop) -> None:
        self.part = part

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.part.on_start(trainer, module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.part.on_step(trainer, module, module.step)

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.part.on_end(trainer)


def fit(folder: Path, name: str = "ddp", stop: str = "100000", ours: str = "yes", module: Any = None) -> None:
    """A Trainer that a signal, or the step ``stop``, ends; ``ours`` tells whether Lightning leaves signals to us."""

    def save(module: Any, step: int) -> None:
        world.wait()  # as publishing a checkpoint does
        note(folder, "saved", step)

    hardware: Any = Hardware(accelerator="cpu", strategy=name, devices=devices())  # type: ignore[arg-type]
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices(),
        strategy=strategies.make(hardware, Train(), devices()),
        plugins=[environment.cluster()],
        max_steps=int(stop),
        callbacks=[OnePart(stopping.Stop(save))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    if ours == "yes":
        stopping.take_over(trainer)
    trainer.fit(module or Tiny(folder))
    note(folder, "done", trainer.global_step)


def last(folder: Path, stop: str) -> None:
    """A signal in the last step."""

    class Late(Tiny):
        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            if index == int(stop) - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, index)

    fit(folder, "ddp", stop, module=Late(folder))


def loop(folder: Path, fault: str = "", at: str = "0", rank: str = "1") -> None:
    """Steps that reduce something, as gradients are; at some step one rank meets its fault."""
    for step in range(1000):
        pause()
        dist.all_reduce(torch.ones(1000))
        leave_pid(folder, step)
        if step == int(at) and world.rank() == int(rank):
            FAULTS[fault]()
        elif step == int(at) and fault == "unanswered":
            time.sleep(600)
    note(folder, "done", 1000)


def mistake() -> None:
    raise NotReady("data.dir='nowhere' is not a folder")


def bug() -> None:
    raise ValueError("a bug")


def unanswered() -> None:
    """An error while a question of this rank is on its way to one that does not answer."""
    dist.all_reduce(torch.ones(1), async_op=True)
    time.sleep(0.1)
    raise ValueError("a bug with a question open")


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


FAULTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "killed": send(signal.SIGKILL),
    "hangs": send(signal.SIGSTOP),
    "mistake": mistake,
    "bug": bug,
    "unanswered": unanswered,
}
PROGRAMS: dict[str, Callable[..., None]] = {"fit": fit, "last": last, "loop": loop}


def run(name: str, folder: str, *words: str) -> int:
    asked, timeout = (int(os.environ.get(key, default)) for key, default in (("ASKED", devices()), ("TIMEOUT", 1800)))
    hardware = Hardware(accelerator="cpu", devices=asked, timeout=timeout)
    first = ranks.joined(hardware, lambda: PROGRAMS[name](Path(folder), *words))
    if first:
        print("the first rank reports")
    return 0


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))

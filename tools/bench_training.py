"""Training speed: our rounds against a bare PyTorch loop, and masked against unmasked training.

    python tools/bench_training.py --out results/bench_training.csv

Everything runs in one process on one thread and one core's worth of work: each subject has a thread of its own, and a
baton lets one of them at a time train a block of steps. Ratios are taken between neighbouring blocks and their medians
compared, by CPU time of the thread and by wall time; the limits hold for CPU time, which other work on the machine
disturbs less. Rounds are those of `lottery.play`, whole; their evaluation and checkpoints lie outside the blocks.
Exit status 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from archive import general_machine
from torch import nn
from torch.nn import functional

from lth_scale import files, lottery, settings
from lth_scale.data import Batches, Dataset
from lth_scale.data.dataset import Split
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths
from lth_scale.shards import ReplicatedShards
from lth_scale.training.masking import Masking

PATIENCE = 120.0  # seconds until a subject that hangs ends the benchmark
BASE = ["--train.optimizer=sgd", "--train.momentum=0", "--train.lr=0.1", "--prune.rounds=1", "--prune.rate=0.8"]


@dataclass(frozen=True)
class Setting:
    """What is trained, and the limits: our round's speed over the bare loop's, masked time over unmasked time."""

    name: str
    words: tuple[str, ...]
    images: int
    block: int
    blocks: int
    speed: float | None
    masked: float


LENET = Setting(
    "lenet_300_100, batch 128",
    ("--data.name=mnist", "--model.name=lenet_300_100", "--train.batch_size=128"),
    images=55_000, block=50, blocks=24, speed=0.75, masked=1.05,
)  # fmt: skip
RESNET = Setting(
    "resnet20, batch 32",
    ("--data.name=cifar10", "--model.name=resnet20", "--train.batch_size=32"),
    images=2_000, block=2, blocks=24, speed=None, masked=1.01,
)  # fmt: skip


class Abandoned(Exception):
    """Another subject has failed; its error is the one to read."""


class Baton:
    """Hands the machine from one subject to the next, a block of steps each."""

    def __init__(self, subjects: int) -> None:
        self.turns = [threading.Semaphore(0) for _ in range(subjects)]
        self.together = threading.Barrier(subjects, timeout=PATIENCE)
        self.lost = False
        self.turns[0].release()

    def wait(self, place: int) -> None:
        """Until it is this subject's turn."""
        if not self.turns[place].acquire(timeout=PATIENCE):
            raise TimeoutError("another subject does not come to the end of its block")
        if self.lost:
            raise Abandoned

    def meet(self) -> None:
        """Until all subjects are here."""
        try:
            self.together.wait()
        except threading.BrokenBarrierError:
            raise Abandoned if self.lost else TimeoutError("a subject does not come to the start or the end") from None

    def give_up(self) -> None:
        """A subject has failed: nobody waits for it."""
        self.lost = True
        self.together.abort()
        for turn in self.turns:
            turn.release()

    def hand_on(self, place: int) -> None:
        """To the next subject."""
        self.turns[(place + 1) % len(self.turns)].release()


@dataclass
class Subject:
    """One way to train; counts its steps and times its blocks."""

    name: str
    place: int
    baton: Baton
    block: int
    blocks: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    _step: int = 0
    _begun: tuple[float, float] = (0.0, 0.0)

    def before_step(self) -> None:
        """Call it as each step begins; blocks while others train."""
        step, self._step = self._step, self._step + 1
        if step % self.block or step > self.block * self.blocks:
            return
        if step == 0:
            self.baton.meet()
        else:
            self.wall.append(time.perf_counter() - self._begun[0])
            self.cpu.append(time.thread_time() - self._begun[1])
            self.baton.hand_on(self.place)
        if step == self.block * self.blocks:
            self.baton.meet()
            return
        self.baton.wait(self.place)
        self._begun = time.perf_counter(), time.thread_time()


class Paced(Experiment):
    """An experiment on random images whose measured training steps wait for the baton."""

    subject: Subject | None = None
    images: int = 0

    @cached_property
    def dataset(self) -> Dataset:
        """Random images of the set's shape; what is in them does not change the time that a step takes."""
        shape, classes = self.description.shape, self.description.classes
        generator = torch.Generator().manual_seed(0)

        def split(count: int) -> Split:
            images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
            return Split(images, torch.randint(0, classes, (count,), generator=generator))

        moments = (127.0 / 255,) * shape[0], (74.0 / 255,) * shape[0]
        return Dataset(self.description.name, classes, shape, split(self.images), split(100), split(100), *moments, "0")

    def model(self, init: int) -> nn.Module:
        """The network, with the baton's hook."""
        network = super().model(init)
        if subject := self.subject:
            network.register_forward_pre_hook(lambda module, _: subject.before_step() if module.training else None)
        return network


def experiment(setting: Setting, out: Path, subject: Subject | None = None) -> Paced:
    """A run folder of a setting."""
    with PARSING:
        return _established(setting, out, subject)


def _established(setting: Setting, out: Path, subject: Subject | None) -> Paced:
    steps = setting.block * setting.blocks + 1
    never = [f"--train.eval_every={10 * steps}it", f"--train.checkpoint_every={10 * steps}it"]
    config = settings.parse([*BASE, *setting.words, *never, f"--train.duration={steps}it", "--run.seeds=0"])
    kind = type("Paced", (Paced,), {"subject": subject, "images": setting.images})
    made: Paced = kind(config, RunPaths(out)).established()
    return made


PARSING = threading.Lock()
"""jsonargparse goes to a config's folder while it reads it, and the folder is the whole process's."""


def play(setting: Setting, out: Path, number: int) -> Callable[[Subject], None]:
    """A round of ours, as `lth run` plays it."""

    def subject_of(subject: Subject) -> None:
        one = experiment(setting, out, subject)
        lottery.play(one, next(t for t in one.tasks if (t.arm, t.round) == ("ticket", number)))

    return subject_of


def bare(setting: Setting, out: Path, mask: Mask | None) -> Callable[[Subject], None]:
    """The shortest loop that trains the same network on the same batches with the same optimizer."""

    def subject_of(subject: Subject) -> None:
        one = experiment(setting, out)
        model, data = one.model(0), one.dataset
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        masking = Masking(ReplicatedShards(model, [optimizer]), mask) if mask else None
        if masking:
            masking.weights()
            masking.install()
        _loop(model, optimizer, data, one.config.train.batch_size, subject, masking)

    return subject_of


def _loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, batch: int, subject: Subject, masking: Any
) -> None:
    steps = subject.block * subject.blocks + 1
    order = Batches(
        data, batch_size=batch, micro_batch=0, start=0, stop=steps, order=0, augment_seed=0, augment="none", noise=0
    )
    images = data.normalised_train
    assert images is not None
    for step in range(steps):
        subject.before_step()
        ids = order.global_batch(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[ids]), data.train.labels[ids]).backward()
        if masking:
            masking.gradients()
        optimizer.step()


def measure(setting: Setting, folder: Path) -> dict[str, Subject]:
    """All subjects of a setting, once, side by side."""
    ready = experiment(setting, folder / "masked")
    lottery.play(ready, ready.tasks[0])  # the masked round needs a mask
    mask = Mask.load(ready.paths.round(0, "ticket", 1).mask)
    calls = {
        "bare loop": bare(setting, folder / "bare", None),
        "our round": play(setting, folder / "dense", 0),
        "our round, masked": play(setting, folder / "masked", 1),
        "bare loop, masked": bare(setting, folder / "bare", mask),
    }
    experiment(setting, folder / "bare")
    baton = Baton(len(calls))
    subjects = {n: Subject(n, i, baton, setting.block, setting.blocks) for i, n in enumerate(calls)}
    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(_watched, calls[name], subject) for name, subject in subjects.items()]
    errors = [error for future in running if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, Abandoned)):
        raise error
    return subjects


def _watched(call: Callable[[Subject], None], subject: Subject) -> None:
    """A subject that fails lets the others end too."""
    try:
        call(subject)
    except BaseException:
        subject.baton.give_up()
        raise


def ratios(runs: Sequence[dict[str, Subject]], first: str, second: str, clock: str) -> list[float]:
    """Time of first over time of second, block by block; each run's first block is warm-up."""
    pairs = [zip(getattr(run[first], clock)[1:], getattr(run[second], clock)[1:], strict=True) for run in runs]
    return [a / b for pair in pairs for a, b in pair]


def rows(setting: Setting, runs: Sequence[dict[str, Subject]]) -> list[dict[str, Any]]:
    """The table of a setting: one line a comparison."""
    compared: list[tuple[str, str, str, float | None]] = [
        ("speed of our round / bare loop", "bare loop", "our round", setting.speed),
        ("speed of our masked round / masked bare loop", "bare loop, masked", "our round, masked", setting.speed),
        ("time masked / unmasked, our rounds", "our round, masked", "our round", setting.masked),
        ("time masked / unmasked, bare loops", "bare loop, masked", "bare loop", None),
    ]
    return [_row(setting, runs, *line) for line in compared]


def _row(
    setting: Setting, runs: Sequence[dict[str, Subject]], name: str, first: str, second: str, limit: float | None
) -> dict[str, Any]:
    cpu, wall = (statistics.median(ratios(runs, first, second, clock)) for clock in ("cpu", "wall"))
    kept = limit is None or (cpu >= limit if name.startswith("speed") else cpu <= limit)
    sign = ">=" if name.startswith("speed") else "<="
    mine, other = (_speed(setting, runs, subject) for subject in (first, second))
    return {
        "setting": setting.name,
        "comparison": name,
        "cpu": f"{cpu:.3f}",
        "wall": f"{wall:.3f}",
        "limit": "" if limit is None else f"{sign} {limit}",
        "kept": "" if limit is None else "yes" if kept else "no",
        "steps_per_second": f"{mine:.1f} / {other:.1f}",
        "blocks": len(ratios(runs, first, second, "cpu")),
    }


def _speed(setting: Setting, runs: Sequence[dict[str, Subject]], subject: str) -> float:
    """Steps per CPU second, by the median block."""
    return setting.block / statistics.median(s for run in runs for s in run[subject].cpu[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table: list[dict[str, Any]] = []
    for setting in (LENET, RESNET):
        runs = []
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measure(setting, Path(folder)))
        table += rows(setting, runs)
    machine = f"{general_machine()}, torch {torch.__version__}, one thread"
    for row in table:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(machine)
    if options.out:
        lines = [",".join(table[0]), *(",".join(f'"{value}"' for value in row.values()) for row in table)]
        files.write_text(options.out, "\n".join(lines) + "\n")
        files.write_text(options.out.with_suffix(".machine.txt"), machine + "\n")
    return int(any(row["kept"] == "no" for row in table))


if __name__ == "__main__":
    sys.exit(main())

"""What pruning, rewinding and saving add to the memory of training, for a model of 200 million weights on 2 ranks.

Each rank samples its anonymous memory (files that are mapped belong to the page cache, and are given back) through one
experiment of two rounds, and reports its peak by phase. Limits: the mask at work takes at most one byte a local weight;
beyond that, no phase of the second round passes the peak of training the dense network by more than 64 MiB.

    python tools/bench_memory.py [--strategies deepspeed_stage_3,fsdp2] [--hidden 14200] [--out FILE]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT = 64  # MiB
MIB = 1 << 20
RANKS = 2
COLUMNS = ("strategy", "rank", "phase", "peak_mib", "over_training_mib")
BASE = (
    *("digits_lenet", "--run.seeds=0", "--run.arms=[ticket]", "--prune.rounds=1", "--hardware.accelerator=cpu"),
    *("--train.batch_size=4", "--train.duration=3it", "--train.eval_every=3it", "--train.checkpoint_every=3it"),
    *("--rewind.at=1it", "--prune.scope=global", "--prune.rates.output=null", "--train.optimizer=sgd"),
)


def anonymous() -> float:
    """MiB of this process that no file backs."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith("RssAnon")) / 1024


class Peaks:
    """The highest sample of each phase; phases may nest, and the innermost counts."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self.stack = ["set-up"]
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()

    def note(self) -> None:
        phase = self.stack[-1]
        self.peaks[phase] = max(self.peaks.get(phase, 0.0), anonymous())

    def _sample(self) -> None:
        while not self.over.wait(0.01):
            self.note()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.note()
        self.stack.append(name)
        try:
            yield
        finally:
            self.note()
            self.stack.pop()

    def during(self, owner: Any, method: str, name: Callable[[], str]) -> None:
        """Take a method's calls for a phase."""
        inner = getattr(owner, method)

        def outer(*arguments: Any, **options: Any) -> Any:
            with self.phase(name()):
                return inner(*arguments, **options)

        setattr(owner, method, outer)


def rank(words: list[str], out: Path) -> None:
    """As one of the ranks: one experiment, watched."""
    from lth_scale import lottery, settings, world
    from lth_scale.experiment import Experiment
    from lth_scale.training import callbacks, environment, masking

    config = settings.parse(words)
    environment.join(config.hardware)
    run, peaks = Experiment.at(config, out).established(), Peaks()
    current = 0

    def in_round(name: str) -> Callable[[], str]:
        return lambda: f"round {current}: {name}"

    play = lottery.play

    def played(experiment: Experiment, task: Any, *more: Any) -> None:
        nonlocal current
        current = task.round
        with peaks.phase(f"round {current}: training"):
            play(experiment, task, *more)

    lottery.play = played
    peaks.during(lottery, "train_round", in_round("training"))
    peaks.during(lottery, "next_mask", in_round("pruning"))
    peaks.during(lottery, "result", in_round("recording"))
    peaks.during(callbacks.Begin, "on_start", in_round("rewinding"))
    peaks.during(callbacks.RewindPoints, "on_step", in_round("saving"))
    peaks.during(callbacks.Checkpoints, "save", in_round("saving"))
    peaks.during(callbacks.Evaluation, "on_step", in_round("training"))
    resident: list[float] = []
    make = masking.Masking.__init__

    def masked(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        resident.append(sum(mask.nbytes for mask in self._masks.values()))

    masking.Masking.__init__ = masked  # type: ignore[method-assign]
    lottery.run(run, run.tasks)
    peaks.over.set()
    local = sum(p.numel for p in run.prunable) / world.size()
    told = {"peaks": peaks.peaks, "mask_bytes": resident[-1], "local_weights": local, "rank": world.rank()}
    (out / f"memory_{world.rank()}.json").write_text(json.dumps(told))
    environment.leave()


def measured(strategy: str, hidden: int) -> list[dict[str, Any]]:
    """What each rank told."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        sizes = f"--model.hidden=[{hidden},{hidden}]"
        words = [*BASE, sizes, f"--hardware.strategy={strategy}", f"--hardware.devices={RANKS}"]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
        command = [sys.executable, *launcher, __file__, "--rank", json.dumps(words), "--out", folder]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "MALLOC_TRIM_THRESHOLD_": "0",
            "MALLOC_MMAP_THRESHOLD_": "65536",
        }
        subprocess.run(command, check=True, env=environment)
        return [json.loads((Path(folder) / f"memory_{number}.json").read_text()) for number in range(RANKS)]


def rows(strategy: str, told: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each phase, and whether the limits hold."""
    training = told["peaks"]["round 0: training"]
    for phase, peak in told["peaks"].items():
        over = round(peak - training, 1)
        yield dict(zip(COLUMNS, (strategy, told["rank"], phase, round(peak, 1), over), strict=True))


def kept(told: dict[str, Any]) -> bool:
    """Whether the limits hold on a rank."""
    small = told["local_weights"] < 50e6  # where a mask may take as many bytes as the weights
    mask, training = told["mask_bytes"] / MIB, told["peaks"]["round 0: training"]
    later = [
        peak for phase, peak in told["peaks"].items() if phase.startswith("round 1: ") or phase == "round 0: pruning"
    ]
    return (
        told["mask_bytes"] <= (4.04 if small else 1.01) * told["local_weights"]
        and max(later) <= training + mask + LIMIT
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategies", default="deepspeed_stage_3,fsdp2")
    parser.add_argument("--hidden", type=int, default=14200)
    parser.add_argument("--rank")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    if flags.rank:
        rank(json.loads(flags.rank), flags.out)
        return 0
    table, sound = [], True
    for strategy in flags.strategies.split(","):
        begun = time.monotonic()
        for told in measured(strategy, flags.hidden):
            table += (new := list(rows(strategy, told)))
            for row in new:
                print(
                    "{strategy:18} rank {rank}  {phase:22} {peak_mib:9.1f} MiB  {over_training_mib:+9.1f}".format(**row)
                )
            sound &= kept(told)
            mask = told["mask_bytes"] / told["local_weights"]
            print(f"{strategy} rank {told['rank']}: mask {mask:.3f} bytes a local weight; limits kept: {kept(told)}")
        print(f"{strategy}: {time.monotonic() - begun:.0f} s", flush=True)
    if flags.out:
        with flags.out.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    return 0 if sound else 1


if __name__ == "__main__":
    raise SystemExit(main())

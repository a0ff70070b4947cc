"""Every strategy on the devices at hand: does a run repeat itself, and are its tickets those of DDP?

    python tools/gpu_matrix.py --devices 2 --precision bf16 --out results/gpu_matrix.csv

Each strategy runs a small ResNet on the digits twice, three rounds, over nccl (or gloo: ``--accelerator cpu``).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from lth_scale.config import Hardware
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths

STRATEGIES: tuple[str, ...] = get_args(get_type_hints(Hardware)["strategy"])
COLUMNS = (
    *("strategy", "devices", "precision", "device", "torch", "seconds", "repeats_itself", "weights_of_ddp"),
    *("masks_of_ddp", "smallest_mask_overlap_with_ddp", "largest_loss_difference_to_ddp"),
)
BASE = (
    *("digits_lenet", "--model.name=resnet20", "--run.seeds=0", "--run.arms=[ticket]", "--prune.rounds=2"),
    *("--prune.scope=global", "--prune.rates.output=null", "--train.optimizer=nesterov", "--train.lr=0.05"),
    *("--train.batch_size=64", "--train.duration=60it", "--train.eval_every=20it", "--rewind.at=10it"),
    *("--hardware.deterministic=true",),
)


def run(strategy: str, out: Path, flags: argparse.Namespace) -> tuple[RunPaths, float]:
    """One experiment; its folder, and how long it took."""
    hardware = {"strategy": strategy, "devices": flags.devices, "precision": flags.precision}
    hardware |= {"accelerator": flags.accelerator}
    words = [*BASE, *(f"--hardware.{key}={value}" for key, value in hardware.items())]
    begun = time.monotonic()
    subprocess.run([sys.executable, "-m", "lth_scale", "run", *words, "--out", str(out)], check=True)
    return RunPaths(out), time.monotonic() - begun


def results(paths: RunPaths) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in paths.results()]


def hashes(paths: RunPaths, kind: str) -> list[str]:
    return [one["hashes"][kind] for one in results(paths)]


def overlap(one: RunPaths, other: RunPaths) -> float:
    """The smallest share of surviving weights that two runs agree on, over the rounds."""
    found = []
    for number in (1, 2, 3):
        ours, theirs = (Mask.load(paths.round(0, "ticket", number).mask) for paths in (one, other))
        found.append(sum(int((ours[name] & theirs[name]).sum()) for name in ours) / ours.kept)
    return min(found)


def loss_difference(one: RunPaths, other: RunPaths) -> float:
    pairs = zip(results(one), results(other), strict=True)
    return max(abs(a["end"]["test"]["loss"] - b["end"]["test"]["loss"]) for a, b in pairs)


def rows(folder: Path, flags: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    gpu = flags.accelerator != "cpu"
    device, ddp = torch.cuda.get_device_name(0) if gpu else "CPU", RunPaths(folder / "ddp 1")
    for strategy in STRATEGIES:
        (one, seconds), (two, _) = (run(strategy, folder / f"{strategy} {again}", flags) for again in (1, 2))
        repeats = hashes(one, "weights") == hashes(two, "weights")
        same = [hashes(one, kind) == hashes(ddp, kind) for kind in ("weights", "mask")]
        told = (strategy, flags.devices, flags.precision, device, torch.__version__, round(seconds, 1), repeats)
        yield *told, *same, round(overlap(one, ddp), 4), f"{loss_difference(one, ddp):.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--accelerator", default="gpu", choices=("gpu", "cpu"))
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = []
        for row in rows(Path(folder), flags):
            table.append(row)
            print(", ".join(f"{key} {value}" for key, value in zip(COLUMNS, row, strict=True)), flush=True)
    if flags.out:
        with flags.out.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *table])
    return 0 if all(row[6] for row in table) else 1


if __name__ == "__main__":
    raise SystemExit(main())

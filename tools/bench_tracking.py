"""What tracking costs a round: off, offline, online, and online against a service that hangs.

    python tools/bench_tracking.py --out results/bench_tracking.csv

The same rounds of LeNet-300-100 on the digits, in processes of their own that take turns; of each the first round,
which starts W&B's client, a later one, and the summary of the run. "In tracking" is the time that a round waits for it,
from the first call to the end of its log on disk; ratios are to the neighbouring process without tracking, and medians
over repeats are shown. The service is an imitation of W&B's on loopback. What was measured lies in OUT.raw.csv, and the
same command goes on there. Exit status 1 if the limit is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import pandas as pd
import torch
from archive import general_machine
from wandb_service import Service, service

from lth_scale import files, lottery, settings, tracking
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.tracking import Tracked, summary

MODES = ("off", "offline", "online", "online, service hangs")
ROUNDS = ("first", "later", "summary")
LIMIT = 0.02  # of a round
DRAIN = 60.0  # seconds that an upload has before the next process
MEASURED = ["repeat", "tracking", "round", "seconds", "cpu", "waited"]
BASE = ["digits_lenet", "--prune.rounds=1", "--run.seeds=0", "--run.arms=[ticket]", "--hardware.accelerator=cpu"]


@contextmanager
def timed(waited: list[float]) -> Iterator[None]:
    """Adds up the seconds that rounds spend in tracking."""
    plain, clock = tracking.tracked, time.perf_counter

    class Timed(Tracked):
        def __init__(self, inner: Tracked) -> None:
            self.inner = inner

        def rows(self, measures: Any) -> None:
            begun = clock()
            self.inner.rows(measures)
            waited[0] += clock() - begun

        def finish(self, result: dict[str, Any]) -> None:
            begun = clock()
            self.inner.finish(result)
            waited[0] += clock() - begun

    @contextmanager
    def tracked(*words: Any) -> Iterator[Tracked]:
        begun = clock()
        with plain(*words) as inner:
            waited[0] += clock() - begun
            yield Timed(inner)

    tracking.tracked = tracked  # type: ignore[assignment]
    try:
        yield
    finally:
        tracking.tracked = plain


def play(folder: Path, mode: str, steps: int) -> None:
    """In a process of its own: two rounds and the summary, a line of JSON each."""
    torch.set_num_threads(1)
    fields = [f"--train.duration={steps}it", f"--train.eval_every={steps // 20}it", f"--tracking.wandb={mode}"]
    one = Experiment.at(settings.parse([*BASE, *fields]), folder).established()
    one.dataset  # noqa: B018
    for task, name in zip(one.tasks, ROUNDS, strict=False):
        waited = [0.0]
        begun, cpu = time.perf_counter(), time.process_time()
        with timed(waited):
            lottery.play(one, task)
        print(json.dumps([name, time.perf_counter() - begun, time.process_time() - cpu, waited[0]]))
    begun = time.perf_counter()
    summary.summarise(folder, syncing=True)
    print(json.dumps(["summary", time.perf_counter() - begun, 0.0, time.perf_counter() - begun]))


def measured(mode: str, steps: int, made: Service) -> list[list[Any]]:
    """What such a process said."""
    made.mood = "hang" if "hangs" in mode else "well"
    online = made.environment() if mode.startswith("online") else {}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | online
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, __file__, "--child", mode.partition(",")[0], "--folder", folder]
        command += ["--steps", str(steps)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        drain(Path(folder), mode == "online")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def drain(folder: Path, patient: bool) -> None:
    """Let nothing of one process be at work during the next."""
    deadline = time.monotonic() + DRAIN * patient
    while time.monotonic() < deadline and any("seed_" in str(path) for path in tracking.pending(RunPaths(folder))):
        time.sleep(0.2)
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes()
            if b"tracking.following" in words and os.fsencode(folder) in words:
                os.kill(int(path.parent.name), signal.SIGTERM)


def collect(raw: Path, steps: int, repeats: int) -> pd.DataFrame:
    """All measurements; those that are there already are not made again."""
    found = pd.read_csv(raw) if raw.is_file() else pd.DataFrame(columns=MEASURED)
    with service() as made:
        for repeat in range(repeats):
            for mode in (*MODES[repeat % len(MODES) :], *MODES[: repeat % len(MODES)]):
                if ((found["repeat"] == repeat) & (found["tracking"] == mode)).any():
                    continue
                rows = [[repeat, mode, *row] for row in measured(mode, steps, made)]
                print(*rows, sep="\n", flush=True)
                found = pd.DataFrame([*found.values.tolist(), *rows], columns=MEASURED)
                files.write_text(raw, found.to_csv(index=False, float_format="%.4f"))
    return found


def table(found: pd.DataFrame) -> list[dict[str, Any]]:
    """One line a kind of tracking and of round."""
    return [row for mode in MODES for name in ROUNDS if (row := _row(found, mode, name))]


def _row(found: pd.DataFrame, mode: str, name: str) -> dict[str, Any]:
    chosen = found[found["round"] == name]
    mine, off = (chosen[chosen["tracking"] == each].set_index("repeat") for each in (mode, "off"))
    if mine.empty or (name == "summary" and mode == "off"):
        return {}
    seconds, waited = mine["seconds"].median(), mine["waited"].median()
    row = {"tracking": mode, "round": name, "seconds": f"{seconds:.1f}", "in_tracking_s": f"{waited:.3f}"}
    if name == "summary":
        return row | dict.fromkeys(("share", "wall_/_off", "cpu_/_off", "limit", "kept"), "") | {"repeats": len(mine)}
    share = waited / seconds
    row |= {"share": f"{share:.2%}".replace("%", " %")}
    row |= {
        f"{name}_/_off": f"{(mine[key] / off[key]).median():.3f}" for name, key in (("wall", "seconds"), ("cpu", "cpu"))
    }
    row |= {"limit": "", "kept": ""} if mode == "off" else {"limit": "< 2 %", "kept": "yes" if share < LIMIT else "no"}
    return row | {"repeats": len(mine)}


def write(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """The table and the machine."""
    files.write_text(out, pd.DataFrame(rows).to_csv(index=False))
    files.write_text(out.with_suffix(".machine.txt"), f"{general_machine()}, torch {torch.__version__}, one thread\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench_tracking.csv"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        play(options.folder, options.child, options.steps)
        return 0
    rows = table(collect(options.out.with_suffix(".raw.csv"), options.steps, options.repeats))
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    write(rows, options.out)
    return int(any(row["kept"] == "no" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

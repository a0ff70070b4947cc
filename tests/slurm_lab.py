"""A Slurm cluster on this machine for a module's tests, and a small experiment to send to it."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from lth_scale import cli, files, lottery, settings
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.slurm import queue
from lth_scale.slurm.cluster import find
from lth_scale.slurm.queue import Element
from lth_scale.slurm.state import Known, known
from lth_scale.status import open_experiment

HERE = Path(__file__).resolve().parent
SCRIPT = HERE.parent / "slurm" / "local-cluster" / "cluster"
PATIENCE = 400.0  # seconds that anything may take on a busy machine

SMALL = [
    "digits_lenet",
    *("--model.hidden=[20,10]", "--train.duration=200it", "--train.eval_every=100it", "--train.checkpoint_every=60it"),
    *("--rewind.at=5it", "--prune.rounds=1", "--hardware.accelerator=cpu"),
    "--tracking.wandb=off",
]
ONE = ("--run.seeds=0", "--run.arms=[ticket]")
DENSE = ("--only", "round=0")
SEVERAL = ("--run.seeds=0,7", "--run.arms=[ticket,random]")
MIDDLE = 100  # the step at which rounds stand still


class Lab:
    """The cluster: started and stopped by the same script that people use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cluster(self, action: str, *words: str) -> None:
        subprocess.run([SCRIPT, action, self.folder, *words], check=True, timeout=60)

    @property
    def isolated(self) -> bool:
        """Whether nodes have host names of their own, and their end is that of their jobs."""
        return bool((self.folder / "isolated").read_text())

    def require_isolated(self) -> None:
        if not self.isolated:
            pytest.skip("the kernel allows no namespaces here (unshare), so nodes are not like hosts")

    def site(self, **changes: Any) -> Path:
        """A cluster file: the shipped one of the cluster on this machine, whose rounds can stand still."""
        path = Path(tempfile.mkstemp(suffix=".yaml", dir=self.folder)[1])
        command = [sys.executable, str(HERE / "slurm_standing.py")]
        path.write_text(yaml.safe_dump({**yaml.safe_load(find("local").read_text()), "command": command, **changes}))
        return path

    def until(self, what: Callable[[], Any], why: str) -> Any:
        """Wait for something to be true; what it is."""
        deadline = time.monotonic() + PATIENCE
        while not (found := what()):
            if time.monotonic() > deadline:
                queued = queue.call("squeue", "-h", "-o", "%i %j %T %r %N")
                pytest.fail(f"{why} did not come about; the queue:\n{queued}")
            time.sleep(0.2)
        return found

    def until_over(self, run: Path) -> None:
        """Wait until a run has nothing in the queue."""
        self.until(lambda: not queue.jobs(run), f"the end of {run.name}")

    def until_standing(self, run: Path, step: int = MIDDLE) -> None:
        self.until(lambda: (run / f"stands_{step}").exists(), f"step {step} of {run.name}")

    def job(self, run: Path, kind: str = "ticket", round: int = 0, index: int | None = 0) -> Element:
        (found,) = [job for job in queue.jobs(run) if (job.kind, job.round, job.index) == (kind, round, index)]
        return found


@contextmanager
def running(folder: Path, nodes: int) -> Iterator[Lab]:
    """A cluster; skips where Slurm is missing."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("Slurm is not installed: apt-get install --no-install-recommends slurm-wlm")
    made = Lab(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN"))]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            made.cluster("start", str(nodes))
            yield made
        finally:
            made.cluster("stop")


def submit(run: Path, *words: str, site: Path | str = "local", report: bool = True) -> None:
    """``lth submit``; without its report job, which costs as much as a round, where a test has no use for it."""
    assert cli.main(["submit", *SMALL, "--cluster", str(site), "--out", str(run), *words]) == 0
    if not report:
        queue.cancel([job.name for job in queue.jobs(run) if job.kind == "report"])


def result(run: Path, round: int = 0, seed: int = 0, arm: str = "ticket") -> dict[str, Any]:
    made: dict[str, Any] = files.read_json(run / f"seed_{seed}" / arm / f"round_{round:02d}" / "result.json")
    return made


def finished(run: Path) -> set[str]:
    """``seed_0/ticket/round_00`` and so on, of rounds that are done."""
    return {str(path.parent.relative_to(run)) for path in run.glob("seed_*/*/round_*/result.json")}


def states(run: Path) -> dict[tuple[int, str, int], Known]:
    """What ``lth status`` knows: (seed, arm, round) -> it."""
    return {(task.seed, task.arm, task.round): task for task in known(open_experiment(run))}


def log(run: Path, name: str) -> str:
    (path,) = (run / "submit" / "logs").glob(f"{name}.log")
    return path.read_text()


def processes(element: str, is_it: Callable[[dict[str, str], list[str]], bool]) -> list[int]:
    """Of an array's element, by environment and command line; those of isolated nodes are seen from here too."""
    array, _, index = element.partition("_")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            pairs = (entry.partition("=") for entry in os.fsdecode((folder / "environ").read_bytes()).split("\0"))
            told = {name: value for name, _, value in pairs}
            words = os.fsdecode((folder / "cmdline").read_bytes()).split("\0")
            ours = (told.get("SLURM_ARRAY_JOB_ID"), told.get("SLURM_ARRAY_TASK_ID")) == (array, index)
            if ours and is_it(told, words):
                found.append(int(folder.name))
    return found


def rank(element: str, number: int = 0) -> int:
    """The process of a task of srun's."""

    def is_it(told: dict[str, str], words: list[str]) -> bool:
        python = Path(words[0]).name.startswith("python")
        return python and "SLURM_STEP_ID" in told and told.get("SLURM_PROCID") == str(number)

    (pid,) = processes(element, is_it)
    return pid


def script(element: str) -> int:
    """The process that is slurm/round.sbatch."""
    (pid,) = processes(element, lambda told, words: words[1:2] != [] and words[1].endswith("/slurm_script"))
    return pid


Scenario = Callable[[Lab, Path], Iterator[None]]


def play(lab: Lab, folder: Path, scenarios: Sequence[Scenario]) -> None:
    """Each in a run folder of its name, all at once, so that they wait together.

    First every scenario up to its ``yield``, then, when all rounds that are to stand still do, what befalls them.
    """
    begun = [scenario(lab, folder / scenario.__name__) for scenario in scenarios]
    for part in begun:
        next(part)
    for run in [file.parent for file in folder.glob(f"*/stand_{MIDDLE}")]:
        lab.until_standing(run)
    for part in begun:
        next(part, None)


def stand(run: Path, *steps: int) -> None:
    """Have a run's rounds stand still after steps, until :func:`go`."""
    run.mkdir(exist_ok=True)
    for step in steps or [MIDDLE]:
        (run / f"stand_{step}").touch()


def go(run: Path, step: int = MIDDLE) -> None:
    (run / f"stand_{step}").unlink()


@functools.cache
def reference() -> Path:
    """Two seeds, in this process and never interrupted."""
    run = Path(tempfile.mkdtemp(prefix="lth_whole_"))
    atexit.register(shutil.rmtree, run, ignore_errors=True)
    made = Experiment.at(settings.parse([*SMALL, *SEVERAL]), run).established()
    lottery.run(made, made.tasks)
    return run


def differing(run: Path, other: Path) -> list[str]:
    """Rounds that are done here and ended with other bits than there: weights, masks, the masks that they leave."""
    wrong = []
    for name in sorted(finished(run)):
        one, two = (json.loads((root / name / "result.json").read_text()) for root in (run, other))
        masks = [path.relative_to(run) for path in (run / name).parent.glob("*/mask.safetensors")]
        same = all(Mask.load(run / mask) == Mask.load(other / mask) for mask in masks)
        if one["hashes"] != two["hashes"] or not same:
            wrong.append(name)
    return wrong

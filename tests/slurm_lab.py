"""A Slurm cluster on this machine for a module's tests, and a small experiment to send to it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lth_scale import cli
from lth_scale.slurm import queue
from lth_scale.slurm.queue import Element

SCRIPT = Path(__file__).resolve().parent.parent / "slurm" / "local-cluster" / "cluster"
PATIENCE = 240.0  # seconds that anything may take on a busy machine

SMALL = [
    "digits_lenet",
    *(
        "--model.hidden=[20,10]",
        "--train.duration=1200it",
        "--train.eval_every=600it",
        "--train.checkpoint_every=600it",
    ),
    *("--rewind.at=5it", "--prune.rounds=1", "--hardware.accelerator=cpu"),
]


class Lab:
    """The cluster: started and stopped by the same script that people use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cluster(self, action: str, *words: str) -> None:
        subprocess.run([SCRIPT, action, self.folder, *words], check=True, timeout=60)

    def sbatch(self, *words: str) -> str:
        return queue.submit(["--output=/dev/null", *words])

    def queued(self) -> list[str]:
        """All jobs, as squeue lists them."""
        return queue.call("squeue", "-h", "-r").splitlines()

    def until(self, what: Callable[[], Any], why: str = "") -> Any:
        """Wait for something to be true; what it is."""
        deadline = time.monotonic() + PATIENCE
        while not (found := what()):
            if time.monotonic() > deadline:
                pytest.fail(f"{why or what} did not come about; the queue:\n" + "\n".join(self.queued()))
            time.sleep(0.1)
        return found

    def until_over(self) -> None:
        """Wait for the queue to be empty."""
        self.until(lambda: not self.queued(), "an empty queue")

    def job(self, run: Path, kind: str, round: int, index: int = 0) -> Element | None:
        for job in queue.jobs(run):
            if (job.kind, job.round, job.index) == (kind, round, index):
                return job
        return None

    def training(self, run: Path, round: int = 0, seed: int = 0) -> str:
        """Wait until a ticket's round is being trained; its element's name."""
        folder = run / f"seed_{seed}" / "ticket" / f"round_{round:02d}" / "attempts"
        self.until(lambda: list(folder.glob("*/metrics.csv")), f"training in {folder}")
        job = self.job(run, "ticket", round, seed)
        assert job is not None
        return job.name


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
        pytest.skip("Slurm is not installed: apt-get install --no-install-recommends slurm-wlm")
    made = Lab(tmp_path_factory.mktemp("lab"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN"))]:
            patch.delenv(name)
        patch.setenv("SLURM_CONF", str(made.folder / "slurm.conf"))
        try:
            made.cluster("start")
            yield made
        finally:
            made.cluster("stop")


@pytest.fixture(autouse=True)
def _empty_queue(lab: Lab) -> Iterator[None]:
    yield
    subprocess.run(["scancel", "--user", str(os.getuid())], check=True)
    lab.until_over()


def submit(run: Path, *words: str) -> None:
    assert cli.main(["submit", *SMALL, "--cluster", "local", "--out", str(run), *words]) == 0


def result(run: Path, round: int = 0, seed: int = 0, arm: str = "ticket") -> dict[str, Any]:
    made: dict[str, Any] = json.loads((run / f"seed_{seed}" / arm / f"round_{round:02d}" / "result.json").read_text())
    return made


def finished(run: Path) -> set[str]:
    """``seed_0/ticket/round_00`` and so on, of rounds that are done."""
    return {str(path.parent.relative_to(run)) for path in run.glob("seed_*/*/round_*/result.json")}

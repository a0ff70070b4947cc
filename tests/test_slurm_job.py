"""What a job does around its round: warnings that come early, claims of those that were killed or lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_lab import ONE, SMALL

from lth_scale import claims, settings
from lth_scale.experiment import Experiment
from lth_scale.files import read_json, write_json
from lth_scale.paths import RunPaths
from lth_scale.slurm import job
from lth_scale.tasks import Task

DENSE = Task(0, 0, "ticket")


def lost(folder: Path, owner: str) -> None:
    """A claim of a host that was heard of just now."""
    path = folder / f"{claims.acquire(folder, owner):06d}"
    write_json(path, {**read_json(path), "host": "node17"})


@pytest.mark.kill
def test_a_warning_that_comes_while_modules_are_imported_is_heeded(tmp_path: Path) -> None:
    made = Experiment.at(settings.parse([*SMALL, *ONE]), tmp_path).established()
    write_json(made.paths.submit.seeds, [0])
    words = ["task", str(tmp_path), "--arm=ticket", "--round=0", "--index=0", "--job=7_0"]
    process = subprocess.Popen([sys.executable, "-m", "lth_scale", *words], stderr=subprocess.PIPE, text=True)
    while not caught(process.pid) >> (signal.SIGUSR1 - 1) & 1:
        time.sleep(0.001)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate()
    assert (process.returncode, "stopped by SIGUSR1 at step 1, checkpoint saved" in said) == (job.CONTINUE, True), said


def caught(pid: int) -> int:
    """The signals that a process has handlers for, as bits."""
    found = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0


def test_what_killed_tasks_claim_is_given_back(tmp_path: Path) -> None:
    folder = DENSE.paths(RunPaths(tmp_path)).claims
    claims.acquire(folder, "7_0")
    lost(folder, "7_0")
    assert job.failed(tmp_path, DENSE, "8_0", 137) == 0
    assert claims.holder(folder) == {**read_json(folder / "000002"), "claim": "000002"}, "not of another job"
    assert job.failed(tmp_path, DENSE, "7_0", 137) == 0
    assert claims.acquire(folder, "9_0") == 3


@pytest.mark.slow
def test_a_job_waits_for_a_lost_one_to_be_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SILENCE", 2.0)
    lost(tmp_path, "7_0")
    begun = time.monotonic()
    job._free(tmp_path, "7_0")
    assert time.monotonic() - begun < 1, "its own job, queued again, need not wait"
    job._free(tmp_path, "9_0")
    assert time.monotonic() - begun > 2
    assert claims.acquire(tmp_path, "9_0") == 2


def test_a_job_does_not_wait_for_one_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SILENCE", 1.0)
    monkeypatch.setattr(claims, "HEARTBEAT", 0.0)
    monkeypatch.setattr(job.time, "sleep", lambda seconds: os.utime(tmp_path / "000001"))
    lost(tmp_path, "7_0")
    job._free(tmp_path, "9_0")
    assert claims.alive(claims.holder(tmp_path) or {}, tmp_path)

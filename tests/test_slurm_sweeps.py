"""A W&B sweep as a job array of its agents, on a real Slurm cluster on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_lab import SMALL, Lab, running
from wandb_sweep import SWEEP, Sweep, sweeping

from lth_scale import cli
from lth_scale.files import read_json
from lth_scale.resources import file
from lth_scale.settings import fields_of, load
from lth_scale.slurm import queue

RATES = (0.2, 0.8)
COMMAND = ["${env}", "lth", "run", *SMALL[:-1], "--train.duration=20it", "--train.eval_every=10it"]
COMMAND += ["--run.seeds=0", "--run.arms=[ticket]", "--jobs=1", "${args}"]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running(tmp_path / "lab", nodes=2) as made:
        yield made


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweep]:
    with sweeping(COMMAND, [{"prune": {"rate": rate}} for rate in RATES]) as made:
        for key, value in made.service.environment().items():
            monkeypatch.setenv(key, value)
        yield made


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_an_array_of_agents_plays_every_point_once(
    lab: Lab, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One agent and one point an allocation; an agent more than there are points ends with nothing to do."""
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    count = len(RATES) + 1
    assert cli.main(["submit", "sweep", SWEEP, f"--agents={count}", "--cluster=local"]) == 0
    (job,) = re.findall(r"submitted 3 agents of team/lth_scale/sweep1 as job (\d+)", capsys.readouterr().out)
    lab.until(lambda: not queue.call("squeue", "-h", "-j", job), "the end of all agents")
    told = {path: path.read_text() for path in here.glob(f"runs/sweep-sweep1/agent-{job}_*.log")}
    assert len(told) == count and len(sweep.given) == count, told
    assert sorted(run for runs in sweep.given.values() for run in runs) == sorted(sweep.points), "every point once"
    assert sorted(map(len, sweep.given.values())) == [0, 1, 1], "one agent an allocation, one point an agent"
    found = {fields_of(load(path))["prune.rate"]: path.parent for path in here.glob("runs/*/config.yaml")}
    assert found.keys() == set(RATES), told
    for name, point in sweep.points.items():
        run = found[point["prune"]["rate"]]
        ends = [read_json(run / f"seed_0/ticket/round_0{number}/result.json") for number in (0, 1)]
        agents = sweep.service.runs[name]
        assert [row["density"] for row in agents.history] == [end["density"] for end in ends]
        assert agents.history[1]["ticket/test_accuracy"] == ends[1]["end"]["test"]["accuracy"] and agents.exits == [0]


def test_what_would_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cluster file's options, the script as it ships, and nothing written."""
    monkeypatch.chdir(tmp_path)
    words = ["submit", "sweep", SWEEP, "--agents=18", "--max-parallel=4", "--cluster=local", "--dry-run"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "--array=0-17%4" in said and "--mem=3000M" in said and said.count(SWEEP) == 1
    assert "--signal=USR1@60 --signal=B:USR1@60" in said, (
        "of two the later one holds: the agent is in the script's place"
    )
    assert file("slurm", "sweep.sbatch").read_text() in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--agents=3"], "submit needs a cluster"),
        (["--cluster=local"], "needs --agents N"),
        (["--cluster=local", "--agents=0"], "--agents=0 is not valid; it must be 1 or more"),
        (["--cluster=local", "--agents=3", "--prune.rate=0.3"], "has its fields in its command"),
    ],
)
def test_what_is_lacking_is_told(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "sweep", SWEEP, *words]) == 2
    assert why in capsys.readouterr().err

"""Sweep files: which points they have, which runs these make, and what W&B's own agents hand over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_service import Service
from wandb_sweep import SWEEP, sweeping

from lth_scale import cli, settings
from lth_scale.errors import UserError
from lth_scale.files import read_json
from lth_scale.paths import RunPaths
from lth_scale.resources import folder
from lth_scale.slurm import commands
from lth_scale.sweeps import as_runs
from lth_scale.sweeps.file import Point, load, words
from lth_scale.tracking import pending

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ["${env}", "lth", "run", "digits_lenet", "${args}"]
TINY = ["--model.hidden=[20,10]", "--train.duration=20it", "--train.eval_every=10it", "--prune.rounds=1"]
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a sweep file, its parameters by name: its place."""
    monkeypatch.chdir(tmp_path)

    def made(parameters: Any, **entries: Any) -> str:
        told = {"method": "grid", "parameters": parameters, "command": COMMAND} | entries
        kept = {key: value for key, value in told.items() if value is not None}
        (tmp_path / "file.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
        return "file.yaml"

    return made


def points(place: str, seed: int = 0) -> list[Point]:
    return load(Path(place)).points(seed)


def runs(*told: str) -> list[list[str]]:
    return as_runs(told, cli._run_flags)


def config(run: list[str]) -> dict[str, Any]:
    """The fields of a run's config."""
    return settings.fields_of(settings.parse(cli._run_flags(run)[1]))


# --- points -----------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_once(write: Write) -> None:
    place = write(
        {"prune.rate": {"values": [0.1, 0.2]}, "train.lr": {"values": [1, 2, 3]}, "data.name": {"value": "x"}}
    )
    found = points(place)
    assert found == [{"prune.rate": r, "train.lr": lr, "data.name": "x"} for r in (0.1, 0.2) for lr in (1, 2, 3)]
    assert points(write({"train.lr": {"values": [1, 2, 3]}}, run_cap=2)) == [{"train.lr": 1}, {"train.lr": 2}]


def test_nested_keys_and_dotted_ones_are_the_same(write: Write) -> None:
    nested = {"prune": {"parameters": {"rates": {"parameters": {"conv": {"values": [0.1, 0.2]}}}}}}
    assert points(write(nested)) == points(write({"prune.rates.conv": {"values": [0.1, 0.2]}}))


def test_ranges_that_can_be_counted_make_a_grid(write: Write) -> None:
    assert points(write({"x": {"min": 2, "max": 4}})) == [{"x": 2}, {"x": 3}, {"x": 4}]
    stepped = {"distribution": "q_uniform", "min": 0.1, "max": 0.45, "q": 0.1}
    assert points(write({"x": stepped})) == [{"x": 0.1}, {"x": 0.2}, {"x": 0.3}, {"x": 0.4}]
    with pytest.raises(UserError, match=r"parameters.x: distribution='uniform' has no list of values"):
        points(write({"x": {"min": 0.0, "max": 1.0}}))


DRAWN = {
    "flat": {"min": 1.0, "max": 3.0},
    "log": {"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0},
    "whole": {"min": 1, "max": 4},
    "stepped": {"distribution": "q_uniform", "min": 0, "max": 10, "q": 5},
    "named": {"values": ["a", "b"], "probabilities": [0.9, 0.1]},
    "fixed": {"value": 7},
}


def test_draws_have_their_distributions(write: Write) -> None:
    found = points(write(DRAWN, method="random", run_cap=4000))
    near = pytest.approx
    column = {key: [point[key] for point in found] for key in DRAWN}
    assert min(column["flat"]) >= 1 and max(column["flat"]) < 3
    assert sum(x < 1.5 for x in column["flat"]) / 4000 == near(0.25, abs=0.03)
    assert sum(x < 1e-2 for x in column["log"]) / 4000 == near(0.5, abs=0.03)
    assert {x: n / 4000 for x, n in Counter(column["whole"]).items()} == near(
        dict.fromkeys((1, 2, 3, 4), 0.25), abs=0.03
    )
    assert set(column["stepped"]) == {0, 5, 10} and set(column["fixed"]) == {7}
    assert column["named"].count("b") / 4000 == near(0.1, abs=0.02)
    assert abs(sum((x - 2) * (y - 2.5) for x, y in zip(column["flat"], column["whole"], strict=True))) / 4000 < 0.05


def test_a_draw_is_a_function_of_seed_number_and_key(write: Write) -> None:
    three = points(write(DRAWN, method="random", run_cap=3))
    assert points(write(DRAWN, method="random", run_cap=5))[:3] == three
    assert points("file.yaml", seed=1) != points("file.yaml", seed=0)
    alone = points(write({"log": DRAWN["log"]}, method="random", run_cap=3))
    assert [point["log"] for point in alone] == [point["log"] for point in three]


# --- runs -------------------------------------------------------------------------------------------------------------


def test_each_point_is_a_run_in_a_folder_of_its_hash(write: Write) -> None:
    place = write({"prune.rate": {"values": [0.1, 0.3]}}, command=[*COMMAND[:-1], "--train.lr=0.5", "${args}"])
    made = runs(place, "--out=there", "--prune.rounds=3")
    assert [config(run)["prune.rate"] for run in made] == [0.1, 0.3]
    assert all((config(run)["train.lr"], config(run)["prune.rounds"]) == (0.5, 3) for run in made)
    for run in made:
        alone = settings.parse(["digits_lenet", "--train.lr=0.5", f"--prune.rate={config(run)['prune.rate']}"])
        assert run[-2:] == ["--out", f"there/digits_lenet-{settings.digest(alone)}"]
    assert runs(place)[0][-1].startswith("runs/file/digits_lenet-")


def test_seeds_are_replicates_of_one_run(write: Write) -> None:
    made = runs(write({"run.seeds": {"values": [0, 2, "4-5"]}, "prune.rate": {"values": [0.1, 0.3]}}))
    assert [(config(run)["prune.rate"], config(run)["run.seeds"]) for run in made] == [
        (0.1, [0, 2, 4, 5]),
        (0.3, [0, 2, 4, 5]),
    ]


def test_points_that_would_share_a_folder_are_refused(write: Write) -> None:
    with pytest.raises(UserError, match=r"file.yaml: prune.rounds cannot be swept"):
        runs(write({"prune.rounds": {"values": [2, 3]}}))


def test_the_command_line_wins_and_goes_to_all(write: Write) -> None:
    place = write({"prune.rate": {"values": [0.1, 0.3]}, "train.lr": {"values": [0.1, 0.2]}})
    made = runs(place, "--prune.rate=0.2", "--jobs", "2", "--only", "round=0")
    assert [(config(run)["prune.rate"], config(run)["train.lr"]) for run in made] == [(0.2, 0.1), (0.2, 0.2)]
    assert all(cli._run_flags(run)[0].jobs == 2 and cli._run_flags(run)[0].only == ["round=0"] for run in made)


def test_what_starts_the_program_elsewhere_is_left_out(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "digits_lenet")
    plain = runs(write({"prune.rate": {"value": 0.3}}))
    for start in (["srun", "-n8", "lth"], ["${interpreter}", "-m", "lth_scale"], ["${program}"]):
        command = ["${env}", *start, "run", "${envvar:NAME}", "${args_no_boolean_flags}"]
        assert runs(write({"prune.rate": {"value": 0.3}}, command=command, program="lth")) == plain


@pytest.mark.parametrize("name", [path.stem for path in sorted((folder("configs") / "sweeps").glob("*.yaml"))])
def test_shipped_sweeps_make_runs(name: str) -> None:
    made = runs(name, "--plan")
    assert len(made) == {"mnist_rates": 12, "rate_rewind_lr": 18, "seeds": 1}[name]
    assert len({run[-1] for run in made}) == len(made)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bayes": ({"method": "bayes"}, r"method='bayes' needs W&B's service.*wandb agent"),
    "method": ({"method": "gird"}, r"method='gird' is not known \(did you mean 'grid'\?\); choose from: grid, random"),
    "entry": ({"metod": "grid"}, r"entry='metod' is not known \(did you mean 'method'\?\)"),
    "no cap": ({"method": "random"}, r"run_cap=None is not valid; it must be the number of draws"),
    "cap": ({"run_cap": 0}, r"run_cap=0 is not valid"),
    "no command": ({"command": None}, r"command=None is not valid; it must be a list such as"),
    "no args": ({"command": COMMAND[:-1]}, r"behind `lth run` it must have one of \$\{args\}"),
    "other program": ({"command": ["python", "x.py", "${args}"]}, r"does not start this program"),
    "macro": ({"command": [*COMMAND, "${program_args}"]}, r"behind `lth run` it must have one of"),
    "nothing": ({"parameters": {}}, r"parameters=\{\} is not valid"),
    "no mapping": (
        {"parameters": {"prune.rate": 0.2}},
        r"parameters.prune.rate=0.2 is not valid; write \{value: 0.2\}",
    ),
    "empty": ({"parameters": {"prune.rate": {"values": []}}}, r"parameters.prune.rate.values=\[\] is not valid"),
    "kind": (
        {"parameters": {"prune.rate": {"distribution": "normal"}}},
        r"parameters.prune.rate.distribution='normal' is not known.*choose from: categorical",
    ),
    "part": ({"parameters": {"prune.rate": {"vales": [1]}}}, r"parameters.prune.rate='vales' is not known .*'values'"),
    "text": ({"parameters": {"train.lr": {"min": "1e-3", "max": 1.0}}}, r"parameters.train.lr=.*write 1.0e-3"),
    "order": ({"parameters": {"train.lr": {"min": 2, "max": 1}}}, r"parameters.train.lr.min=2 is not valid"),
    "weights": (
        {"parameters": {"train.lr": {"values": [1, 2], "probabilities": [0.5, 0.6]}}},
        r"parameters.train.lr.probabilities=\[0.5, 0.6\] is not valid; it must be 2 numbers that sum to 1",
    ),
    "field": (
        {"parameters": {"prune.rat": {"value": 1}}},
        r"prune.rat is not a config field \(did you mean prune.rate",
    ),
    "value": ({"parameters": {"prune.scope": {"value": "lyer"}}}, r"prune.scope='lyer' is not known.*'layer'"),
    "section": ({"parameters": {"prune": {"value": 1}}}, r"prune is a section"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_swept_is_told(name: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    changes, told = BAD[name]
    entries = {"parameters": {"prune.rate": {"value": 0.2}}} | changes
    with pytest.raises(UserError, match=f"^file.yaml: .*{told}"):
        runs(write(entries.pop("parameters"), **entries))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "torn.yaml").write_text("method: [grid")
    with pytest.raises(UserError, match=r"torn.yaml cannot be read as YAML"):
        runs(str(tmp_path / "torn.yaml"))
    with pytest.raises(UserError, match=r"sweep='sees' is not known \(did you mean 'seeds'\?\)"):
        runs("sees")
    with pytest.raises(UserError, match=r"sweep needs a file first"):
        runs("--plan", "seeds")


# --- what W&B's agents write ------------------------------------------------------------------------------------------

SENT: dict[str, Any] = {  # by the service, for parameters that are nested, and dotted ones
    "prune": {"rate": 0.36, "rates": {"conv": 1e-05}, "scope": "layer"},
    "train.sync_batchnorm": True,
    "train.lr": 1e-05,
    "seeds.init": None,
    "run.arms": ["ticket", "random"],
    "run.seeds": [0, 3],
    "rewind.at": "50it",
    "model.hidden": [20, 10],
    "data.dir": "it's (old)",
}
MEANT = {
    **{"prune.rate": 0.36, "prune.rates.conv": 1e-05, "prune.scope": "layer"},
    **{key: value for key, value in SENT.items() if key != "prune"},
}


@pytest.mark.parametrize("form", ["args", "args_no_equals", "args_no_boolean_flags", "args_json"])
def test_arguments_of_the_client_are_understood(form: str) -> None:
    written = create_sweep_command_args({"args": {key: {"value": value} for key, value in SENT.items()}})[form]
    found = settings.fields_of(settings.parse(["digits_lenet", *written]))
    assert {key: found[key] for key in MEANT} == MEANT
    assert all(type(found[key]) is type(value) for key, value in MEANT.items())


def test_our_words_are_the_clients() -> None:
    sent = {"args": {key: {"value": value} for key, value in MEANT.items()}}
    assert words(MEANT) == create_sweep_command_args(sent)["args"]


def test_variables_are_filled_in_as_the_client_does(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAME", "digits_lenet")
    command = ["lth", "run", "${envvar:NAME}", "--tracking.tags=[${envvar:UNSET},a]", "${args}"]
    found = load(Path(write({"prune.rate": {"value": 0.3}}, command=list(command))))
    assert [*found.before, "${args}"] == create_sweep_command(command)[2:]


def test_mappings_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"prune='\{' cannot be read as a mapping"):
        settings.parse(["--prune={"])
    with pytest.raises(UserError, match=r"prune.rat is not a config field"):
        settings.parse(["--prune={'rat': 1}"])
    with pytest.raises(UserError, match=r"--prune.rate has no value"):
        settings.parse(["--prune.rate", "--train.lr=1"])


# --- whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_points_on_the_digits(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    place = write({"prune.rate": {"values": [0.2, 0.5]}}, metric={"name": "x"})
    told = ["sweep", place, "--out=swept", *TINY, "--run.seeds=0", "--run.arms=[ticket]", "--tracking.wandb=off"]
    assert cli.main([*told, "--jobs=1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("file.yaml: metric concern") and said.endswith("next: lth report swept/*\n")
    found = sorted(Path("swept").glob("*/seed_0/ticket/round_01/result.json"))
    assert sorted(read_json(path)["density"] for path in found) == pytest.approx([0.5, 0.8], abs=0.03)
    before = [path.stat().st_mtime_ns for path in found]
    assert cli.main([*told, "--jobs=1"]) == 0  # goes on, with nothing to do
    assert [path.stat().st_mtime_ns for path in found] == before


def test_as_jobs(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    place = write({"prune.rate": {"values": [0.2, 0.5]}, "run.seeds": {"values": [0, 1]}})
    assert commands.submit(["sweep", place, "--out=swept", *TINY, "--cluster=local", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("slurm/report.sbatch") >= 2 and said.count("--array=0-1") >= 2


@pytest.fixture
def asked() -> Iterator[Service]:
    """A service that has one point for an agent, once."""
    command = [*COMMAND[:-1], *TINY, "--run.arms=[ticket]", "--jobs=1", COMMAND[-1]]
    with sweeping(command, [{"prune": {"rate": 0.5}, "run.seeds": 3}]) as made:
        yield made.service


@pytest.mark.kill  # starts the client's own service
def test_an_agent_plays_a_point_whose_run_gets_the_results(asked: Service, tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    told = os.environ | asked.environment() | {"PATH": path, "OMP_NUM_THREADS": "1"}
    agent = [str(programs / "wandb"), "agent", "--forward-signals", "--count", "1", SWEEP]
    done = subprocess.run(agent, cwd=tmp_path, env=told, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = tmp_path.glob("runs/digits_lenet-*")
    ends = [read_json(run / f"seed_3/ticket/round_0{number}/result.json") for number in (0, 1)]
    assert [row["density"] for row in asked.runs["point0"].history] == [end["density"] for end in ends]
    (row,) = (row["ticket/test_accuracy"] for row in asked.runs["point0"].history[1:])
    assert row == ends[1]["end"]["test"]["accuracy"]
    deadline = time.monotonic() + 60  # they are sent beside
    while (waiting := pending(RunPaths(run))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert waiting == []
    rounds = {name for name in asked.runs if name != "point0"}  # which are runs of their own
    assert {name.partition("-")[2] for name in rounds} == {"s3-ticket-r00", "s3-ticket-r01", "summary"}


@pytest.mark.kill
def test_the_client_itself_would_give_rounds_the_agents_run(tmp_path: Path) -> None:
    told = os.environ | {"WANDB_SWEEP_ID": "sweep1", "WANDB_RUN_ID": "point", "WANDB_MODE": "offline"}
    begin = "import wandb; print(wandb.init(id='own', settings=wandb.Settings(silent=True)).id)"
    for before, name in (("", "point"), ("from lth_scale.tracking.aside import apart\nwith apart(): ", "own")):
        command = [sys.executable, "-c", f"{before}{begin}"]
        done = subprocess.run(command, cwd=tmp_path, env=told, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == name, done.stderr

"""The command line: what it accepts, what it prints, and its exit codes. Mistakes are in test_bad_input.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from pebble import ProcessExpired
from tiny_runs import play, tiny

from lth_scale import cli, launch, lottery, settings
from lth_scale.config import Config, Rates, Seeds
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.settings import parse

Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lth(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Said:
    """Runs a command: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        return (cli.main(words), *capfd.readouterr())

    return call


# --- help, topics, data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["run", "--help"]])
def test_help(words: list[str], lth: Said) -> None:
    code, said, _ = lth(*words)
    assert code == 0
    assert all(f"lth {command}" in said for command in cli.COMMANDS)


def test_an_unknown_command_is_named(lth: Said) -> None:
    code, _, told = lth("rum")
    assert (code, told.count("\n")) == (2, 1)
    assert "'rum'" in told and "did you mean 'run'?" in told and "data, list, report, run, status" in told


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("models", "lenet_300_100"),
        ("datasets", "digits"),
        ("criteria", "magnitude"),
        ("scopes", "layer"),
        ("arms", "random_reinit"),
        ("recipes", "lr_rewinding"),
        ("configs", "digits_lenet"),
    ],
)
def test_list_reads_the_registries(topic: str, name: str, lth: Said) -> None:
    code, said, _ = lth("list", topic)
    lines = said.splitlines()
    assert code == 0 and name in lines and lines[:-1] == sorted(lines[:-1]) and lines[-1].startswith("next: lth ")


def test_an_unknown_topic_is_named(lth: Said) -> None:
    code, _, told = lth("list", "colours")
    assert code == 2 and "'colours'" in told and "models" in told


def test_data_is_prepared_and_verified(lth: Said) -> None:
    code, said, _ = lth("data", "prepare", "digits", "--out", "here")
    assert code == 0 and "next: lth data verify here" in said
    code, said, _ = lth("data", "verify", "here")
    assert code == 0 and "--data.dir=here" in said
    Path("here/test-000000.tar").write_bytes(b"")
    code, _, told = lth("data", "verify", "here")
    assert code == 2 and "here/test-000000.tar" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["data"], ["data", "mend"], ["data", "prepare"], ["data", "prepare", "digits"], ["data", "verify"]]
)
def test_incomplete_data_commands_say_what_is_missing(words: list[str], lth: Said) -> None:
    code, _, told = lth(*words)
    assert code == 2 and told.count("\n") == 1 and "data" in told


# --- the config -------------------------------------------------------------------------------------------------------


def test_the_template_is_the_default_config(lth: Said) -> None:
    code, said, _ = lth("run", "--print_config")
    assert code == 0
    Path("template.yaml").write_text(said)
    assert parse(["template.yaml"]) == Config()
    silent = {
        line.partition(":")[0].strip() for line in said.splitlines() if "#" not in line and not line.endswith(":")
    }
    obvious = {field.name for section in (Seeds, Rates) for field in fields(section)}
    assert silent <= obvious, f"say in the docstring what {silent - obvious} means"


@pytest.mark.parametrize("name", settings.shipped_configs())
def test_a_shipped_config_is_found_by_name_and_makes_sense(name: str, tmp_path: Path) -> None:
    made = parse([name])
    assert made == parse(["--config", name]) == parse([f"--config={name}"])
    Experiment.at(made, tmp_path)
    (tmp_path / "again.yaml").write_text(settings.dump(made))
    assert parse([str(tmp_path / "again.yaml")]) == made


def layered(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "one.yaml").write_text("train: {lr: 0.5, batch_size: 50}\n")
    (tmp_path / "two.yaml").write_text("train: {lr: 0.25}\nmodel: {hidden: [5, 5]}\n")
    return str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")


def test_later_configs_win_and_fields_win_over_all(tmp_path: Path) -> None:
    one, two = layered(tmp_path)
    both = parse([one, two])
    assert (both.train.lr, both.train.batch_size, both.model.hidden) == (0.25, 50, (5, 5))
    assert parse([two, one]).train.lr == 0.5


def test_a_config_behind_an_override_does_not_win(tmp_path: Path) -> None:
    one, two = layered(tmp_path)
    made = parse(["--train.lr=0.125", "--config", one, two, "--model.hidden", "[7,7]"])
    assert (made.train.lr, made.train.batch_size, made.model.hidden) == (0.125, 50, (7, 7))
    assert made == parse([one, two, "--train.lr=0.125", "--model.hidden=[7,7]"])


VALUES: list[tuple[str, str, Any]] = [
    ("prune.to", "None", None),
    ("prune.to", "null", None),
    ("prune.to", "0.05", 0.05),
    ("prune.rates.fc", "None", None),
    ("prune.rates.fc", "0", 0.0),
    ("prune.rates.fc", "1e-1", 0.1),
    ("seeds.order", "None", None),
    ("seeds.order", "7", 7),
    ("hardware.deterministic", "True", True),
    ("hardware.deterministic", "False", False),
    ("hardware.deterministic", "true", True),
    ("model.hidden", "(300,100)", [300, 100]),
    ("model.hidden", "(300, 100)", [300, 100]),
    ("model.hidden", "[300,100]", [300, 100]),
    ("model.hidden", "[300, 100]", [300, 100]),
    ("model.hidden", "(300,)", [300]),
    ("model.hidden", "[]", []),
    ("run.arms", "('ticket', 'random')", ["ticket", "random"]),
    ("run.arms", "[ticket, random]", ["ticket", "random"]),
    ("run.arms", '["ticket", "random"]', ["ticket", "random"]),
    ("rewind.keep", "['100it', '2ep']", ["100it", "2ep"]),
    ("run.seeds", "0-4", [0, 1, 2, 3, 4]),
    ("run.seeds", "0-2,7", [0, 1, 2, 7]),
    ("run.seeds", "3", [3]),
    ("run.seeds", "[0, 2]", [0, 2]),
    ("run.seeds", "(0, 2)", [0, 2]),
    ("rewind.at", "0", "0"),
    ("rewind.at", "500it", "500it"),
    ("train.lr", "1", 1.0),
    ("train.lr", "1.2e-3", 1.2e-3),
    ("data.dir", "/data (old)/mnist", "/data (old)/mnist"),
    ("data.dir", "", ""),
]


@pytest.mark.parametrize("joined", [True, False], ids=["KEY=VALUE", "KEY VALUE"])
@pytest.mark.parametrize(("key", "text", "value"), VALUES)
def test_values_as_people_and_sweep_agents_write_them(key: str, text: str, value: Any, joined: bool) -> None:
    words = [f"--{key}={text}"] if joined else [f"--{key}", text]
    found = settings.fields_of(parse(words))[key]
    assert found == value and type(found) is type(value)


# --- plan, only, status -----------------------------------------------------------------------------------------------


def test_the_plan_needs_no_data_and_leaves_no_trace(lth: Said, tmp_path: Path) -> None:
    code, said, told = lth("run", "mnist_lenet", "--data.dir=not/there", "--plan", "--out=run")
    assert code == 0 and told == "" and list(tmp_path.iterdir()) == []
    for part in ("fc1.weight", "235,200", "266,200", "50,000", "bias", "rewind point: step 0", "MB", "next: "):
        assert part in said, part


def test_a_throughput_adds_hours_to_the_plan(lth: Said, tmp_path: Path) -> None:
    code, said, told = lth("run", "mnist_lenet", "--plan", "--throughput=25000", "--out=run")
    assert code == 0 and told == "" and list(tmp_path.iterdir()) == []
    for part in ("GPU-hours at 25,000 images/s", "dense", "ticket", "reinit", "late rewinding saves 0.0 of"):
        assert part in said, part
    assert "add --throughput N" in lth("run", "mnist_lenet", "--plan", "--out=run")[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--throughput=100"], "together with --plan"), *((["--plan", f"--throughput={n}"], "positive") for n in (0, -1))],
)
def test_a_throughput_that_is_of_no_use_is_refused(words: list[str], told: str, lth: Said, tmp_path: Path) -> None:
    code, _, error = lth("run", "digits_lenet", *words, "--out=run")
    assert code == 2 and told in error and len(error.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_only_stands_anywhere_and_several_parts_narrow(tmp_path: Path) -> None:
    flags, rest = cli._run_flags(["--only", "seed=0,2", "arm=ticket", "digits_lenet", "--jobs", "3", "--out=x"])
    assert (flags.only, rest, flags.jobs, flags.out) == (["seed=0,2", "arm=ticket"], ["digits_lenet"], 3, "x")
    flags, rest = cli._run_flags(["digits_lenet", "--train.lr", "1", "--only", "round=3-7", "--plan"])
    assert (flags.only, rest, flags.plan) == (["round=3-7"], ["digits_lenet", "--train.lr", "1"], True)


def test_the_folder_is_named_after_the_config_and_its_hash(lth: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Experiment] = []
    monkeypatch.setattr(cli, "_plan", lambda experiment, throughput: seen.append(experiment) or 0)
    Path("mine.yaml").write_text("train: {lr: 0.5}\n")
    lth("run", "mine.yaml", "--plan")
    lth("run", "--config=mine.yaml", "--run.seeds=0-9", "--plan")
    lth("run", "mine.yaml", "--train.lr=0.25", "--plan")
    first, more, other = (experiment.paths.root for experiment in seen)
    assert first == more != other
    assert str(first) == f"runs/mine-{settings.digest(parse(['mine.yaml']))}"


def test_status_of_a_run_and_of_all(lth: Said) -> None:
    made = tiny(train={"duration": "4it"}, prune={"rounds": 1}, run={"seeds": (0, 1), "arms": ("ticket", "random")})
    play(made, Path("runs/mine"), lambda task: task.seed == 0 and task.arm == "ticket")
    code, said, _ = lth("status", "runs/mine")
    ticket, random = (line for line in said.splitlines() if "ticket" in line or "random" in line)
    assert code == 0 and "next: lth report runs/mine" in said
    assert [cell.strip() for cell in ticket.split("│")[1:-1]] == ["ticket", "2", "", "", "1", "1"]
    assert [cell.strip() for cell in random.split("│")[1:-1]] == ["random", "", "", "", "1", "1"]
    code, said, _ = lth("status")
    assert code == 0 and [cell.strip() for cell in said.splitlines()[4].split("│")[1:-1]] == [
        "mine",
        "digits",
        "lenet_300_100",
        "2",
        "6",
    ]


@pytest.mark.parametrize("command", ["status", "report"])
def test_what_is_no_run_folder_is_named(command: str, lth: Said) -> None:
    code, _, told = lth(command, "nowhere")
    assert code == 2 and told.count("\n") == 1 and "nowhere" in told


def test_report_without_a_run(lth: Said) -> None:
    code, _, told = lth("report")
    assert code == 2 and "lth report RUN" in told


# --- exit codes -------------------------------------------------------------------------------------------------------


class Pool:
    """Answers each task as told, at once."""

    def __init__(self, answers: dict[str, BaseException], paths: Any) -> None:
        self._answers, self._paths = answers, paths
        self.asked: list[str] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def schedule(self, work: Any, args: list[Any]) -> Future[None]:
        future: Future[None] = Future()
        task = args[1]
        self.asked.append(str(task))
        if error := self._answers.get(str(task)):
            future.set_exception(error)
        else:
            for path in (task.paths(self._paths).result, self._paths.round(task.seed, "ticket", task.round + 1).mask):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
            future.set_result(None)
        return future


DENSE, OTHER = "seed=0 arm=ticket round=0", "seed=1 arm=random round=1"
EXITS: dict[str, tuple[dict[str, BaseException], int]] = {
    "all done": ({}, 0),
    "a mistake of the user": ({DENSE: UserError("the disk is full")}, 2),
    "a bug": ({DENSE: RuntimeError("no")}, 1),
    "a death": ({DENSE: ProcessExpired("gone", code=-9)}, 1),
    "both": ({DENSE: UserError("the disk is full"), OTHER: RuntimeError("no")}, 1),
}


@pytest.mark.parametrize("case", EXITS)
def test_a_failure_blocks_what_needs_it_and_the_exit_code_says_so(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, code = EXITS[case]
    run = Experiment.at(tiny(prune={"rounds": 2}, run={"seeds": (0, 1), "arms": ("ticket", "random")}), tmp_path)
    pool = Pool(answers, run.paths)
    monkeypatch.setattr(launch, "_pool", lambda jobs, experiment: pool)
    board = launch.launch(run, run.tasks, 2, lambda board: None, "none")
    assert board.exit_code == code and not board.running
    failed = {str(task) for task in board.failed}
    needing = {str(task) for task in run.tasks if task.seed == 0 and task.round} if DENSE in answers else set()
    assert failed == set(answers) | needing
    assert set(pool.asked) == {str(task) for task in run.tasks} - needing
    assert all("which failed" in reason for task, reason in board.failed.items() if str(task) in needing)


@pytest.mark.parametrize(("error", "code"), [(UserError("a mistake"), 2), (KeyboardInterrupt(), 130)])
def test_the_exit_code_of_a_command(
    error: BaseException, code: int, lth: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "status", fail)
    found, _, told = lth("status")
    assert found == code and told.startswith("lth: ") and told.count("\n") == 1


def test_a_bug_is_no_mistake_of_the_user(lth: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "status", fail)
    with pytest.raises(ZeroDivisionError):  # a traceback, and Python's exit code 1
        lth("status")


def test_a_bug_in_a_task_leaves_its_traceback_in_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Experiment.at(tiny(), tmp_path / "run").established()

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(lottery, "play", broken)
    with pytest.raises(ZeroDivisionError):
        launch.work(run.paths.root, run.tasks[0], "none")
    text = (run.tasks[0].paths(run.paths).folder / "error.txt").read_text()
    assert text.startswith("Traceback") and "ZeroDivisionError: a bug" in text


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lth_scale", "lst"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lth: command='lst' is not known (did you mean 'list'?)")

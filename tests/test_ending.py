"""A chain ends when its tickets no longer match on validation: its rounds are done without being trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import established, play, tiny

from lth_scale import lottery, status
from lth_scale.cli import main
from lth_scale.config import Config, Data
from lth_scale.ending import ended
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.report import read_run
from lth_scale.slurm import state
from lth_scale.tasks import Task

pytestmark = pytest.mark.slow

TOLERANCE = {"report": {"tolerance": 1.0}}


def config(patience: int, **changes: Any) -> Config:
    """Rounds that remove 99 % of the weights: the second ticket cannot match."""
    run = {"seeds": (0, 1), "arms": ("ticket", "random"), "patience": patience}
    return tiny(**TOLERANCE, prune={"rate": 0.97, "rounds": 5}, run=run, **changes)


def trained(run: Experiment, seed: int = 0) -> list[int]:
    return [n for n in range(6) if run.paths.round(seed, "ticket", n).result.exists()]


def test_without_patience_all_rounds_are_trained(tmp_path: Path) -> None:
    assert trained(play(config(0), tmp_path, lambda task: task.seed == 0)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("patience", [1, 2])
def test_the_chain_ends_after_so_many_tickets_that_do_not_match(patience: int, tmp_path: Path) -> None:
    run = play(config(patience), tmp_path)
    assert all(task.done(run.paths) for task in run.tasks)
    for seed in (0, 1):
        last = trained(run, seed)[-1]
        assert last < 5 and trained(run, seed) == list(range(last + 1))
        accuracy = [_validation(run, seed, number) for number in range(last + 1)]
        failing = [value < accuracy[0] - 0.01 for value in accuracy[1:]]
        assert all(failing[-patience:]) and not any(
            all(failing[end - patience : end]) for end in range(patience, last)
        )  # not a round earlier
        for number in range(last + 1, 6):
            for arm in ("ticket", "random"):
                assert Task(number, seed, arm).stopped(run.paths)
                assert not run.paths.round(seed, arm, number).result.exists()
    assert not read_run(tmp_path).missing()


def _validation(run: Experiment, seed: int, number: int) -> float:
    found: float = json.loads(run.paths.round(seed, "ticket", number).result.read_text())["end"]["validation"][
        "accuracy"
    ]
    return found


def _told(run: Experiment, accuracies: list[dict[str, float]]) -> Experiment:
    """A run whose rounds measured this."""
    for number, end in enumerate(accuracies):
        path = run.paths.round(0, "ticket", number).result
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"end": {split: {"accuracy": value} for split, value in end.items()}}))
    return run


def test_test_is_never_read(tmp_path: Path) -> None:
    good, bad = {"validation": 0.9, "test": 0.1}, {"validation": 0.1, "test": 0.9}
    run = _told(established(config(1), tmp_path), [{"validation": 0.9, "test": 0.9}, good, bad])
    assert not ended(run, Task(2, 0, "ticket"))  # fails on test alone
    assert "round 2 did not match on validation" in ended(run, Task(3, 0, "random"))  # fails on validation alone


@pytest.mark.parametrize(("last", "over"), [(0.89, False), (0.8899, True)])
def test_the_tolerance_decides(last: float, over: bool, tmp_path: Path) -> None:
    run = _told(established(config(1), tmp_path), [{"validation": 0.9}, {"validation": last}])
    assert bool(ended(run, Task(2, 0, "ticket"))) == over


def test_rounds_in_between_that_match_begin_the_count_anew(tmp_path: Path) -> None:
    values = [0.9, 0.5, 0.9, 0.5, 0.5]
    run = _told(established(config(2), tmp_path), [{"validation": value} for value in values])
    assert [bool(ended(run, Task(number, 0, "ticket"))) for number in range(1, 6)] == [False] * 4 + [True]


def test_status_says_so_and_a_longer_patience_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = play(config(1), tmp_path, lambda task: task.seed == 0)
    left = [task for task in run.tasks if task.seed == 0 and task.stopped(run.paths)]
    assert left and {status.state(task, run.paths) for task in left} == {"stopped"}
    known = {one.task: one for one in state.known(run)}
    assert all(known[task].state == "stopped" and "run.patience=1" in known[task].why for task in left)
    assert main(["status", str(tmp_path)]) == 0 and "stopped" in capsys.readouterr().out
    more = established(replace(run.config, run=replace(run.config.run, patience=0)), tmp_path)
    lottery.run(more, [task for task in more.tasks if task.seed == 0])
    assert trained(more) == [0, 1, 2, 3, 4, 5] and not any(task.stopped(more.paths) for task in more.tasks)


def test_without_validation_images_it_is_refused(tmp_path: Path) -> None:
    made = config(2, data={"name": "imagenet", "lanes": 1})
    with pytest.raises(UserError, match=r"run.patience=2 is not valid: imagenet has no validation images"):
        Experiment.at(replace(made, model=replace(made.model, name="timm:resnet18", init="own")), tmp_path)
    assert Data("imagenet").held_out == 0

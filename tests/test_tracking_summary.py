"""The whole experiment as one W&B run: what it holds, once for the same results, whatever the service does."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from proofs import DONE, forks
from test_report_transfer import SOURCES, write
from test_tracking import end_followers, kinds, logs, online, rows
from tiny_runs import dense, play, result, tiny
from wandb_service import Service

from lth_scale import cli, files
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.report import headline, read_run
from lth_scale.tracking import pending, segments, summarising, summary, sync, uploading
from lth_scale.tracking.identity import Mode

__all__ = ["online"]  # the fixture

pytestmark = [pytest.mark.kill]  # each starts the client's own service

SEEDS = (0, 1)


def config(wandb: str = "offline", seeds: tuple[int, ...] = SEEDS, **changes: dict[str, Any]) -> Config:
    run = {"seeds": seeds, "arms": ("ticket", "random")}
    return tiny(prune={"rounds": 1}, run=run, tracking={"wandb": wandb}, **changes)


def summed(root: Path) -> list[Path]:
    """The logs of a run's summary."""
    return uploading.logs(RunPaths(root).summary)


def told(*paths: Path) -> dict[str, Any]:
    """W&B's summary at the end of logs."""
    found: dict[str, Any] = {}
    for path in paths:
        for record in segments.records(path):
            if record.WhichOneof("record_type") == "summary":
                segments.tree(record.summary.update, found)
    return found


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("_")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return play(config(), tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def concluded(whole: Experiment) -> Path:
    """Its summary logged."""
    summarising.main(whole.paths.root, send=False)
    return whole.paths.root


@pytest.fixture
def copied(concluded: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(concluded, tmp_path / "run", symlinks=True))


@pytest.fixture
def fresh(whole: Experiment, tmp_path: Path) -> Path:
    """Rounds that W&B has, and no summary yet."""
    away = shutil.ignore_patterns("summary", "wandb")
    return Path(shutil.copytree(whole.paths.root, tmp_path / "run", ignore=away))


def test_it_is_a_run_of_the_experiment(concluded: Path, whole: Experiment) -> None:
    (path,) = summed(concluded)
    run = segments.begun(path)
    group = files.read_json(whole.paths.tracking)["experiment"]
    assert (run.run_group, run.job_type, run.project) == (group, "summary", "lth_scale")
    assert run.run_id == f"{group.rpartition('-')[2]}-summary"
    assert segments.ended(path) and segments.tree(run.config.update)["prune"]["rounds"] == 1


def test_its_rows_are_accuracy_by_density(concluded: Path, whole: Experiment) -> None:
    (path,) = summed(concluded)
    found = rows(path)
    assert [row["_step"] for row in found] == [0, 1, 2]
    assert [row["density"] for row in found[:2]] == [1.0, result(whole, "ticket", 1)["density"]]
    for row, number in zip(found[:2], (0, 1), strict=True):
        for arm in ("ticket", "random")[: number + 1]:
            ends = [result(whole, arm, number, seed)["end"]["test"]["accuracy"] for seed in SEEDS]
            assert row[f"{arm}/test_accuracy"] == pytest.approx(sum(ends) / 2, rel=1e-12)
    metrics = [record.metric for record in segments.records(path) if record.WhichOneof("record_type") == "metric"]
    assert {(m.glob_name, m.step_metric) for m in metrics} >= {("ticket/*", "density"), ("random/*", "density")}


def test_it_has_tables_figures_and_the_page(concluded: Path) -> None:
    (path,) = summed(concluded)
    last, media = rows(path)[-1], path.parent / "files"
    results, curve = columns(path, "results"), columns(path, "density_curve_table")
    assert list(results)[:4] == ["run", "arm", "round", "density"] and len(results["arm"]) == 3
    assert (curve["arm"][0], curve["density"][0]) == ("ticket", 1.0)
    assert (media / last["report"]["path"]).read_bytes() == (concluded / "report.html").read_bytes()
    drawn = {key for key in last if key.startswith("figures/")}
    assert drawn >= {"figures/accuracy", "figures/difference", "figures/learning"}
    assert all((media / last[key]["path"]).read_bytes().startswith(b"\x89PNG") for key in drawn)
    assert "artifact" not in kinds(path), "which would lie outside the run folder"


def test_it_says_the_verdicts(concluded: Path) -> None:
    found = told(*summed(concluded))
    assert found["headline"] == headline(concluded) and found["seeds"] == 2 and found["hours"] > 0
    verdicts = {key: value for key, value in found.items() if key.startswith("verdict/")}
    assert verdicts.keys() == {"verdict/ticket/r01", "verdict/random/r01"}
    assert set(verdicts.values()) <= {"matching", "not matching", "undecided"}


def test_carried_tickets_and_instability_have_their_tables(tmp_path: Path) -> None:
    """Source, target and density, with mean, interval and verdict; of lines the same by rewind point."""
    root = write(tmp_path / "to_digits", "digits", (SOURCES["mnist"],))
    for seed, points in enumerate((0.5, 0.6, 0.7)):
        found = {how: dict.fromkeys(("train", "validation", "test"), points) for how in ("reestimated", "stored")}
        line = {"schema": 1, "seed": seed, "kind": "pair", "round": 1, "density": 0.8, "k": 7, "instability": found}
        files.write_json(RunPaths(root).round(seed, "pair.0.1", 1).line, line)
    summarising.main(root, send=False)
    (path,) = summed(root)
    carried, unstable = (columns(path, name) for name in ("transfer", "connectivity"))
    assert {"source", "target", "density", "difference", "difference_low", "difference_high"} <= carried.keys()
    assert set(carried["arm"]) >= {"transfer", "transfer_random"} and len(set(carried["density"])) == 2
    assert "matching" in "".join(str(each) for each in carried["verdict"])
    assert unstable["instability"] == [pytest.approx(0.6)] * 3 and set(unstable["verdict"]) == {"stable"}


def columns(path: Path, name: str) -> dict[str, list[Any]]:
    """A logged table by column."""
    found = json.loads((path.parent / "files" / rows(path)[-1][name]["path"]).read_text())
    return dict(zip(found["columns"], map(list, zip(*found["data"], strict=True)), strict=True))


def test_the_same_results_are_logged_once(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summarising.main(copied, send=False)
    monkeypatch.setattr(summary, "aside", lambda *_: pytest.fail("a process for nothing"))
    summary.summarise(copied)
    assert len(summed(copied)) == 1
    monkeypatch.setattr(summary, "logged", lambda paths: "")  # the control
    summarising.main(copied, send=False)
    assert len(summed(copied)) == 2


def test_more_results_go_on_in_the_same_run(copied: Path) -> None:
    """A row that has not changed is not repeated, and no step comes twice."""
    changed = RunPaths(copied).round(0, "random", 1).result
    made = files.read_json(changed)
    made["end"]["test"]["accuracy"] = 0.5
    files.write_json(changed, made)
    summarising.main(copied, send=False)
    first, second = summed(copied)
    assert segments.begun(first).run_id == segments.begun(second).run_id
    assert [row["_step"] for row in rows(first, second)] == [0, 1, 2, 3, 4]
    again, last = rows(second)
    assert again["density"] < 1 and plain(again)["random/test_accuracy"] < plain(rows(first)[1])["random/test_accuracy"]
    assert "report" in last and "density" not in last
    assert told(first, second)["headline"] == headline(copied)


def test_only_what_is_done_and_tracked_has_one(tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(summary, "aside", lambda module, words, lacking: asked.append(words[0]))
    summary.summarise(fresh)
    assert asked == [], "offline it is left to lth sync"
    summary.summarise(fresh, syncing=True)
    assert asked == [str(fresh)]
    part = play(config(), tmp_path / "part", dense)
    summary.summarise(part.paths.root, syncing=True)
    RunPaths(fresh).tracking.unlink()
    summary.summarise(fresh, syncing=True)
    assert asked == [str(fresh)], "of a part, and of what W&B knows nothing of, there is none"
    off = play(config("off", seeds=(0,)), tmp_path / "off")
    summary.summarise(off.paths.root, syncing=True)
    assert asked == [str(fresh)] and summary.complete(read_run(off.paths.root))


def test_of_two_at_once_one_logs(fresh: Path) -> None:
    wandb.teardown()  # each starts a client of its own
    assert forks(2, lambda _: summarising.main(fresh, send=False), limit=240) == [DONE, DONE]
    assert len(summed(fresh)) == 1


def test_a_report_and_a_sync_see_to_it(
    fresh: Path, capsys: pytest.CaptureFixture[str], online: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And trouble is one warning."""
    (fresh / "summary").write_text("a file where a folder should be")
    with monkeypatch.context() as changed:
        changed.setattr(summary, "mode", lambda tracking: Mode(log=True, upload=True))
        assert cli.main(["report", str(fresh)]) == 0
    said = capsys.readouterr().err
    assert said.count("warning: W&B: ") == said.count("\n") == 1 and "summary is not logged" in said
    (fresh / "summary").unlink()
    assert cli.main(["sync", str(fresh)]) == 0
    assert "sent 1 logs" in capsys.readouterr().out
    (found,) = online.runs.values()
    assert found.fields["jobType"] == "summary" and found.steps == [0, 1, 2] and found.exits == [0]
    assert cli.main(["sync", str(fresh)]) == 0
    assert "sent 0 logs" in capsys.readouterr().out


@pytest.fixture
def received(online: Service) -> Iterator[set[str]]:
    """The names of files that the service was offered."""
    names, query = set[str](), online.query

    def noting(name: str, variables: dict[str, Any]) -> dict[str, Any]:
        if name == "CreateRunFiles":
            names.update(variables["files"])
        return query(name, variables)

    online.query = noting  # type: ignore[method-assign]
    yield names


def test_a_service_that_fails_holds_up_nothing(online: Service, received: set[str], fresh: Path) -> None:
    """What is logged is the same, and `lth sync` sends it when the service is well.

    It is sent as rounds are, whose tests meet a service that refuses or hangs up too.
    """
    online.mood = "hang"
    summarising.main(fresh, send=True)
    (log,) = summed(fresh)
    assert segments.ended(log) and [row["_step"] for row in rows(log)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"is being worked on by pid|1 of 1 logs .* were not sent: .*; try again later"):
        sync(RunPaths(fresh), limit=4)
    end_followers(fresh)
    online.mood = "well"
    assert sync(RunPaths(fresh), limit=60) == 1
    (found,) = online.runs.values()
    assert found.steps == [0, 1, 2] and found.exits[-1] == 0
    assert media(log) <= received
    assert plain(found.history[-1])["results"] == rows(log)[-1]["results"]
    assert found.summary["headline"] == headline(fresh)
    assert "density_curve" in json.loads(found.fields["config"])["_wandb"]["value"]["visualize"]


def media(log: Path) -> set[str]:
    """Tables, images and the page of a log."""
    folder = log.parent / "files"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_is_sent_at_once_where_there_is_a_key(online: Service, received: set[str], fresh: Path) -> None:
    summarising.main(fresh, send=True)
    (log,) = summed(fresh)
    wait_until_sent(fresh)
    (found,) = online.runs.values()
    assert found.steps == [0, 1, 2] and found.exits == [0] and media(log) <= received


def wait_until_sent(root: Path) -> None:
    deadline = time.monotonic() + 60
    while pending(RunPaths(root)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert pending(RunPaths(root)) == []


def test_rounds_say_their_best_and_how_far_they_are_from_their_dense_network(whole: Experiment) -> None:
    (path,) = logs(whole, "ticket", 1)
    found, made = told(path), result(whole, "ticket", 1)
    validated = [row for row in rows(path) if "validation/accuracy" in row]
    best = max(validated, key=lambda row: (row["validation/accuracy"], -row["_step"]))
    assert (found["best/step"], found["best/test_accuracy"]) == (best["_step"], best["test/accuracy"])
    dense = result(whole, "ticket", 0)["end"]["test"]["accuracy"]
    assert found["difference"] == pytest.approx(100 * (made["end"]["test"]["accuracy"] - dense), abs=1e-9)
    assert found["within_tolerance"] == (found["difference"] > -whole.config.report.tolerance)
    (first,) = logs(whole, "ticket", 0)
    assert "difference" not in told(first) and "best/step" in told(first)


def test_a_log_of_a_killed_attempt_does_not_set_the_run_back(copied: Path, online: Service) -> None:
    """Sent after a later one it would end the run as failed, with values of before."""
    marker = RunPaths(copied).round(0, "random", 1).result
    files.write_json(marker, files.read_json(marker) | {"flags": ["changed"]})
    summarising.main(copied, send=False)
    assert sync(RunPaths(copied)) > 1
    first, second = summed(copied)
    found = online.runs[segments.begun(first).run_id]
    before = found.steps, found.summary, list(found.exits)
    uploading.sent(first).unlink()
    assert pending(RunPaths(copied)) == [] and sync(RunPaths(copied)) == 0
    assert (found.steps, found.summary, found.exits) == before
    uploading.sent(second).unlink()
    assert pending(RunPaths(copied)) == [first, second]

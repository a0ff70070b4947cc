"""W&B through its real client: rows once each whatever happens, one run a round, and a service that may do anything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import wandb
from proofs import USER, assert_same, ended, fork, proof
from tiny_runs import K, T, established, play, result, tiny
from wandb_service import KEY, Service, service

from lth_scale import cli, lottery
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.tracking import Identity, mode, pending, segments, sync, uploading
from lth_scale.training import callbacks

pytestmark = [pytest.mark.kill]  # each starts the client's own service


def config(wandb: str = "offline", **changes: dict[str, Any]) -> Config:
    train = {"eval_every": "4it", "checkpoint_every": "8it"}
    chosen = {"prune": {"rounds": 1}, "train": train, "rewind": {"at": f"{K}it"}, "tracking": {"wandb": wandb}}
    return tiny(**(chosen | changes))


def logs(run: Experiment, arm: str = "ticket", number: int = 0) -> list[Path]:
    return sorted(run.paths.round(0, arm, number).folder.glob("attempts/*/wandb/offline-run-*/run-*.wandb"))


def rows(*files: Path) -> list[dict[str, Any]]:
    return [row for path in files for row in segments.history(path)]


def kinds(path: Path) -> list[str]:
    return [record.WhichOneof("record_type") for record in segments.records(path)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Tracked offline, never interrupted."""
    return play(config(run={"arms": ("ticket", "random")}), tmp_path_factory.mktemp("whole"))


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with service() as found:
        for key, value in found.environment().items():
            monkeypatch.setenv(key, value)
        yield found


def test_every_measure_is_a_row_and_the_end_has_the_density(whole: Experiment) -> None:
    (path,) = logs(whole, "ticket", 1)
    found = {row["_step"]: row for row in rows(path)}
    lines = [line.split(",") for line in metrics(whole, "ticket", 1)]
    assert list(found) == sorted({int(line[0]) for line in lines})
    for step, split, loss, accuracy, _ in lines:
        assert found[int(step)][f"{split}/loss"] == pytest.approx(float(loss), rel=1e-12)
        assert found[int(step)][f"{split}/accuracy"] == float(accuracy)
    last, made = found[T], result(whole, "ticket", 1)
    assert last["density"] == made["density"] and last["final/test_accuracy"] == made["end"]["test"]["accuracy"]


def metrics(run: Experiment, arm: str, number: int) -> list[str]:
    attempt = result(run, arm, number)["attempt"]
    return run.paths.round(0, arm, number).metrics(attempt).read_text().splitlines()[1:]


def test_a_round_is_a_run_of_its_experiment(whole: Experiment) -> None:
    found = {}
    for arm, number in (("ticket", 0), ("ticket", 1), ("random", 1)):
        (path,) = logs(whole, arm, number)
        (run,) = [record.run for record in segments.records(path) if record.WhichOneof("record_type") == "run"]
        found[run.run_id] = (run.run_group, run.job_type, run.project)
        settings = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert settings["prune"]["rounds"] == 1 and settings["round"] == number and settings["arm"] == arm
        assert settings["density"] == result(whole, arm, number)["density"]
    group = json.loads(whole.paths.tracking.read_text())["experiment"]
    assert sorted(found.values()) == [(group, kind, "lth_scale") for kind in ("dense", "random", "ticket")]
    assert len(found) == 3 and Identity.of(whole.tasks[0], whole.paths).id in found


def test_tracking_changes_no_bits(whole: Experiment, tmp_path: Path) -> None:
    play(config("off", run={"arms": ("ticket", "random")}), tmp_path)
    assert not list(tmp_path.rglob("*wandb*")) and not RunPaths(tmp_path).tracking.exists()
    assert_same(whole.paths.root, proof(tmp_path))


@pytest.mark.parametrize("step", [9, 17, 23])
def test_a_kill_neither_doubles_nor_loses_a_row(step: int, whole: Experiment, tmp_path: Path) -> None:
    run = established(config(), tmp_path)
    killed(run, step)
    lottery.run(run, run.tasks[:1])
    files = logs(run)
    assert len(files) == 2 and "exit" in kinds(files[1])
    steps = [row["_step"] for row in rows(*files)]
    assert steps == [row["_step"] for row in rows(*logs(whole))]


def killed(run: Experiment, step: int) -> None:
    """In a process with a client of its own."""
    wandb.teardown()
    assert ended(fork(lambda: killed_at(run, step))) == -signal.SIGKILL


def killed_at(run: Experiment, step: int) -> None:
    on_step = callbacks.Evaluation.on_step

    def dying(self: callbacks.Evaluation, trainer: Any, module: Any, now: int) -> None:
        on_step(self, trainer, module, now)
        if now == step:
            time.sleep(1)  # what was logged is on disk by now, or never
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks.Evaluation.on_step = dying  # type: ignore[method-assign]
    lottery.run(run, run.tasks[:1])


@contextmanager
def ending_at(step: int) -> Iterator[None]:
    """An attempt that ends badly, after it has evaluated."""
    on_step = callbacks.Evaluation.on_step

    def ending(self: callbacks.Evaluation, trainer: Any, module: Any, now: int) -> None:
        on_step(self, trainer, module, now)
        if now == step:
            raise UserError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.Evaluation, "on_step", ending)
        yield


def test_without_looking_back_rows_would_come_twice(
    whole: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    run = established(config(), tmp_path)
    with pytest.raises(UserError), ending_at(17):
        lottery.run(run, run.tasks[:1])
    monkeypatch.setattr(segments, "last_step", lambda files: -1)
    lottery.run(run, run.tasks[:1])
    steps = [row["_step"] for row in rows(*logs(run))]
    assert len(steps) > len(set(steps)) == len(rows(*logs(whole)))


def test_what_is_pending_is_sent_once(
    whole: Experiment, online: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a round that was interrupted: its two logs make one run without a gap or a double."""
    run = established(config(), tmp_path)
    with pytest.raises(UserError), ending_at(17):
        lottery.run(run, run.tasks[:1])
    lottery.run(run, run.tasks)
    assert len(pending(run.paths)) == 3
    with uploading.sending(logs(run)[0]):
        """Cut off: the service may have a part of it, so the log after it must not go first."""
    assert cli.main(["sync", str(tmp_path)]) == 0
    assert "sent 4 logs" in capsys.readouterr().out and pending(run.paths) == []
    dense, ticket = (online.runs[Identity.of(task, run.paths).id] for task in run.tasks)
    assert dense.steps == [row["_step"] for row in rows(*logs(whole))]
    assert ticket.steps == [row["_step"] for row in rows(*logs(whole, "ticket", 1))]
    assert dense.exits[-1] == 0 and dense.summary["density"] == 1.0
    assert dense.summary["hours"] > 0 and dense.fields["jobType"] == "dense"
    asked = online.asked
    assert cli.main(["sync", str(tmp_path)]) == 0
    assert online.asked == asked and "sent 0 logs" in capsys.readouterr().out


@pytest.mark.parametrize("mood", ["refuse", "drop", "hang"])
def test_training_does_not_notice_a_service_that_fails(
    mood: str, whole: Experiment, online: Service, tmp_path: Path
) -> None:
    """It logs the same, in the same bits; `lth sync` says what is left, and sends it when the service is well."""
    online.mood = mood
    run = play(config("online", prune={"rounds": 0}), tmp_path)
    assert result(run, "ticket", 0)["hashes"] == result(whole, "ticket", 0)["hashes"]
    (log,) = logs(run)
    assert rows(log)[-1]["density"] == 1.0
    with pytest.raises(UserError, match=r"is being worked on by pid|1 of 1 logs .* were not sent: .*; try again later"):
        sync(run.paths, limit=4)
    end_followers(tmp_path)
    online.mood = "well"
    assert sync(run.paths, limit=60) == 1
    (found,) = online.runs.values()
    assert found.steps == [row["_step"] for row in rows(log)]


@contextmanager
def patience_after(met: Callable[[], bool], seconds: float) -> Iterator[None]:
    """Processes are waited for until their limit, or so long after something has happened."""
    communicate = subprocess.Popen.communicate

    def waiting(process: subprocess.Popen[str], *of: Any, timeout: float) -> Any:
        deadline = time.monotonic() + timeout
        while not met() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return communicate(process, *of, timeout=seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "communicate", waiting)
        yield


def test_sending_that_was_cut_off_goes_on(online: Service, tmp_path: Path) -> None:
    """The service has got all rows, and then hangs up; W&B's own sync would append them again."""
    run = play(config(prune={"rounds": 0}), tmp_path)
    (log,) = logs(run)
    stream = online.stream

    def cut(name: str, told: dict[str, Any]) -> None:
        stream(name, told)
        if "wandb-history.jsonl" in (told.get("files") or {}):
            online.mood = "drop"

    online.stream = cut  # type: ignore[method-assign]
    with pytest.raises(UserError), patience_after(lambda: online.mood == "drop", 3):
        sync(run.paths, limit=25)
    assert online.mood == "drop", "it took longer than that to begin"
    online.stream, online.mood = stream, "well"  # type: ignore[method-assign]
    assert sync(run.paths) == 1 and pending(run.paths) == []
    found = online.runs[Identity.of(run.tasks[0], run.paths).id]
    assert found.steps == [row["_step"] for row in rows(log)]
    assert found.summary["density"] == 1.0 and found.exits[-1] == 0


def test_an_online_run_is_sent_while_it_trains(online: Service, tmp_path: Path) -> None:
    run = play(config("online", prune={"rounds": 0}), tmp_path)
    deadline = time.monotonic() + 60
    while pending(run.paths) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert pending(run.paths) == []
    (found,) = online.runs.values()
    assert found.steps == [row["_step"] for row in rows(*logs(run))] and found.exits == [0]


def end_followers(folder: Path) -> None:
    """As the end of a job does: those that send what lies in a folder, with their clients."""
    while found := followers(folder):
        for number in found:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGTERM)
        time.sleep(0.05)


def followers(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes()
            if b"tracking.following" in words and os.fsencode(folder) in words:
                found.append(int(path.parent.name))
    return found


def test_no_key_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    found = mode(tiny().tracking)
    assert found.log and not found.upload and "has no key here" in found.why and "\n" not in found.why
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mode(tiny().tracking).upload
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not mode(tiny().tracking).upload


def test_a_key_goes_nowhere_but_to_the_service(online: Service, tmp_path: Path) -> None:
    """Neither into the run folder, the report, nor a command line."""
    words = ["run", "digits_lenet", "--out", str(tmp_path / "run"), "--tracking.wandb=online", "--prune.rounds=0"]
    words += ["--train.duration=20it", "--train.eval_every=10it", "--run.seeds=0", "--jobs=1"]
    done = subprocess.run([sys.executable, "-m", "lth_scale", *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    end_followers(tmp_path)
    held = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert held == []


def test_sync_wants_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sync", str(tmp_path)]) == USER
    assert "is not a run folder" in capsys.readouterr().err

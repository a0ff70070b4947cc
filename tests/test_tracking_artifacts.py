"""Tickets as W&B artifacts, through its real client: logged offline, sent once, with lineage, and trained elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from proofs import ended, fork, proof
from test_tracking import online
from tiny_runs import K, dense, established, play, result, theta, ticket_mask, tiny
from wandb_artifacts import Version
from wandb_service import KEY, Service, service

from lth_scale import lottery, starting, tickets
from lth_scale.cli import main
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.tasks import Task
from lth_scale.tickets import Ticket
from lth_scale.tracking import Identity, artifacts, opening, segments, sync, uploading
from lth_scale.transfer import fetching, origins

__all__ = ["online"]  # the fixture

pytestmark = [pytest.mark.kill]  # each starts the client's own service


def config(**changes: dict[str, Any]) -> Config:
    tracking = {"wandb": "offline", **changes.pop("tracking", {})}
    chosen: dict[str, dict[str, Any]] = {"prune": {"rounds": 1}, "rewind": {"at": f"{K}it"}, "tracking": tracking}
    return tiny(**(chosen | changes))


def logged(run: Experiment, arm: str, number: int) -> list[Any]:
    return [a for path in uploading.logs(run.paths.round(0, arm, number)) for a in segments.logged(path)]


def name(run: Experiment, kind: str) -> str:
    return f"{json.loads(run.paths.tracking.read_text())['experiment']}.{kind}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Logged offline, never interrupted."""
    return play(config(run={"arms": ("ticket", "random")}), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def stored(whole: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that has been sent all of it."""
    run = RunPaths(tmp_path_factory.mktemp("sent") / "run")
    shutil.copytree(whole.paths.root, run.root)
    with service() as found:
        with pytest.MonkeyPatch.context() as patch:
            for key, value in found.environment().items():
                patch.setenv(key, value)
            sync(run)
        yield found


def versions(found: Service, run: Experiment, kind: str) -> list[Version]:
    return found.artifacts.committed("lth_scale", name(run, kind))


@pytest.mark.parametrize(("number", "kinds"), [(0, ["theta_k", "ticket"]), (1, ["ticket"])])
def test_an_offline_log_holds_what_the_round_leaves(number: int, kinds: list[str], whole: Experiment) -> None:
    found = logged(whole, "ticket", number)
    assert [(a.name, a.type) for a in found] == [(name(whole, kind), kind) for kind in kinds]
    theta_k = theta(whole, K)
    for record in found:
        seen = 0 if record.type == "theta_k" else number + 1
        assert set(record.aliases) == {"latest", f"s0-r{seen:02d}"}
        (entry,) = record.manifest.contents
        body = Path(entry.local_path).read_bytes()
        assert entry.digest == base64.b64encode(hashlib.md5(body).digest()).decode() and entry.size == len(body)
        ticket = tickets.load(Path(entry.local_path))
        about = json.loads(record.metadata)
        assert about["sha256"] == ticket.checksums and about["density"] == ticket.mask.density
        assert about["theta_k_of_run"] == result(whole, "ticket", number)["source"]["theta_k"]
        if record.type == "theta_k":
            held = ticket.states["theta_k"].whole()
            assert all(torch.equal(held.weights[key], value) for key, value in theta_k.weights.items())
        else:
            assert ticket.mask == ticket_mask(whole, seen) and not ticket.states
            assert len(body) < ticket.mask.numel / 8 + 4096


def test_a_run_names_what_it_starts_from(whole: Experiment) -> None:
    start = [f"{name(whole, 'theta_k')}:s0-r00", f"{name(whole, 'ticket')}:s0-r01"]
    for arm, number, wanted in (("ticket", 0, []), ("ticket", 1, start), ("random", 1, start)):
        (path,) = uploading.logs(whole.paths.round(0, arm, number))
        assert segments.uses(path) == wanted
    assert logged(whole, "random", 1) == []


@pytest.mark.parametrize(("wanted", "kinds"), [("off", []), ("checkpoints", ["theta_k", "ticket", "theta_T"])])
def test_less_and_more_can_be_kept(wanted: str, kinds: list[str], tmp_path: Path) -> None:
    run = play(config(tracking={"artifacts": wanted}), tmp_path, dense)
    found = logged(run, "ticket", 0)
    assert [record.type for record in found] == kinds
    for record in found[2:]:
        held = tickets.load(Path(record.manifest.contents[0].local_path)).states["theta_T"]
        assert held.digest("weights") == result(run, "ticket", 0)["hashes"]["weights"]


def test_an_artifact_holds_no_word_that_results_do_not_depend_on(tmp_path: Path) -> None:
    """Such as a key that was put where it does not belong."""
    run = play(config(tracking={"tags": (KEY,)}), tmp_path, dense)
    assert KEY in run.paths.config.read_text()
    for record in logged(run, "ticket", 0):
        assert KEY not in record.metadata
        assert KEY.encode() not in Path(record.manifest.contents[0].local_path).read_bytes()


def test_trouble_with_an_artifact_takes_nothing_else(
    whole: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*of: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(artifacts.tickets, "pack", broken)
    run = play(config(), tmp_path, dense)
    assert "W&B: OSError: no space left; the ticket is not logged" in capsys.readouterr().err
    (path,) = uploading.logs(run.paths.round(0, "ticket", 0))
    assert segments.ended(path) and segments.logged(path) == []
    assert result(run, "ticket", 0)["hashes"] == result(whole, "ticket", 0)["hashes"]


def interrupted(run: Experiment) -> None:
    """A first attempt whose log is whole, and which is killed before it says that it is done."""
    wandb.teardown()

    def dying() -> None:
        end = opening.end

        def last(*of: Any) -> None:
            end(*of)
            os.kill(os.getpid(), signal.SIGKILL)

        opening.end = last
        lottery.run(run, run.tasks[:1])

    assert ended(fork(dying)) == -signal.SIGKILL
    assert not run.tasks[0].done(run.paths)


@pytest.mark.parametrize("looking", [True, False])
def test_a_kill_makes_no_second_version(looking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control does not look at what was logged before."""
    run = established(config(), tmp_path)
    interrupted(run)
    if not looking:
        monkeypatch.setattr(artifacts.uploading, "logs", lambda paths: [])
    lottery.run(run, run.tasks[:1])
    monkeypatch.undo()
    found = [record.digest for record in logged(run, "ticket", 0)]
    assert len(set(found)) == 2 and len(found) == (2 if looking else 4)


def test_what_is_sent_is_there_once_with_its_lineage(whole: Experiment, stored: Service) -> None:
    (theta_k,), made = versions(stored, whole, "theta_k"), versions(stored, whole, "ticket")
    experiment = name(whole, "").rpartition("-")[2].rstrip(".")
    runs = {f"{experiment}-s0-{place}" for place in ("ticket-r01", "random-r01")}
    assert theta_k.users == runs and theta_k.maker == f"{experiment}-s0-ticket-r00"
    by_alias = {next(iter(version.aliases - {"latest"})): version for version in made}
    assert by_alias["s0-r01"].users == runs and by_alias["s0-r01"].maker == f"{experiment}-s0-ticket-r00"
    assert by_alias["s0-r02"].users == set() and by_alias["s0-r02"].maker == f"{experiment}-s0-ticket-r01"
    for record in [*logged(whole, "ticket", 0), *logged(whole, "ticket", 1)]:
        (held,) = [v for v in stored.artifacts.versions if v.digest == record.digest]
        (entry,) = record.manifest.contents
        assert held.files[entry.path] == Path(entry.local_path).read_bytes()
        assert not any(KEY.encode() in body for body in held.files.values()) and KEY not in held.metadata


def test_sent_again_nothing_is_added(whole: Experiment, online: Service, tmp_path: Path) -> None:
    """Neither when the client's marks are lost, so that all of it is sent a second time."""
    run = RunPaths(tmp_path / "run")
    shutil.copytree(whole.paths.root, run.root, ignore=shutil.ignore_patterns("random"))
    assert sync(run) == 2
    asked = online.asked
    assert sync(run) == 0 and online.asked == asked
    before = [(v.name, v.aliases, v.users) for v in online.artifacts.versions]
    assert len(before) == 3 and any(users for _, _, users in before)
    for path in [*run.root.rglob("*.synced"), *run.root.rglob("*.linked")]:
        path.unlink()
    assert sync(run) == 2 and online.asked > asked
    assert [(v.name, v.aliases, v.users) for v in online.artifacts.versions] == before


def test_an_online_run_has_its_lineage_without_a_command(online: Service, tmp_path: Path) -> None:
    run = play(config(tracking={"wandb": "online"}), tmp_path)
    found = [log for task in run.tasks for log in uploading.logs(task.paths(run.paths))]
    deadline = time.monotonic() + 120
    while not all(uploading.linked(log).exists() for log in found) and time.monotonic() < deadline:
        time.sleep(0.2)
    first, second = (Identity.of(task, run.paths).id for task in run.tasks)
    by_alias = {alias: v for v in versions(online, run, "ticket") for alias in v.aliases}
    assert {alias: by_alias[alias].maker for alias in ("s0-r01", "s0-r02")} == {"s0-r01": first, "s0-r02": second}
    assert by_alias["s0-r01"].users == versions(online, run, "theta_k")[0].users == {second}


@pytest.mark.parametrize("looking", [True, False])
def test_a_folder_may_be_moved_before_it_is_sent(
    looking: bool, online: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control believes what the log says of where files are."""
    run = play(config(), tmp_path / "here", dense)
    run.paths.root.rename(tmp_path / "there")
    if not looking:
        monkeypatch.setattr(uploading, "_moved", lambda path: False)
    assert sync(RunPaths(tmp_path / "there")) == 1
    found = [version.kind for version in online.artifacts.versions if version.number >= 0]
    assert sorted(found) == (["theta_k", "ticket"] if looking else [])


def target(place: str, **changes: dict[str, Any]) -> Config:
    fields = {"sources": (place,), "layers": "body", "rounds": "1", **changes.pop("transfer", {})}
    return config(transfer=fields, run={"arms": ("ticket", "transfer")}, **changes)


def test_a_ticket_starts_from_the_theta_k_that_it_names_or_not_at_all(whole: Experiment, tmp_path: Path) -> None:
    """The control has another under the same name."""
    for record in [*logged(whole, "ticket", 0), *logged(whole, "ticket", 1)]:
        shutil.copy(record.manifest.contents[0].local_path, tmp_path)
    source = origins.opened(str(tmp_path))
    found, there = source.ticket(0, 1, whole.prunable), tickets.of_run(whole.paths.root, 0, 1)
    assert found.checksums == there.checksums and found.mask == ticket_mask(whole, 1)
    dense = tickets.load(source.packed[0, 0])
    other = Ticket(dense.mask, dense.states, dense.config, {**dense.provenance, "theta_k_of_run": "0"})
    tickets.pack(other, source.packed[0, 0])
    with pytest.raises(UserError, match=r"starts from another theta_k than .*s0-r00\.theta_k\.safetensors holds"):
        source.ticket(0, 1, whole.prunable)
    source.packed[0, 0].unlink()
    with pytest.raises(UserError, match=r"holds no theta_k"):
        origins.opened(str(tmp_path)).ticket(0, 1, whole.prunable)


def place(found: Service, run: Experiment, alias: str) -> str:
    (version,) = [version for version in versions(found, run, "ticket") if alias in version.aliases]
    return f"wandb:team/lth_scale/{version.name}"


@pytest.fixture
def asking(stored: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    for key, value in stored.environment().items():
        monkeypatch.setenv(key, value)
    return stored


def test_a_ticket_from_the_service_is_that_of_the_run_folder(
    whole: Experiment, asking: Service, tmp_path: Path
) -> None:
    """Bit for bit, without the service once it is here; another version, the control, is another mask."""
    here = Experiment.at(target(str(whole.paths.root)), tmp_path / "here")
    there = established(target(place(asking, whole, "s0-r01")), tmp_path / "there")
    (label,) = there.config.transfer.places
    assert label in here.config.transfer.places
    asking.mood = "refuse"
    try:
        lottery.run(there, there.tasks)
        again = Experiment.at(target(place(asking, whole, "s0-r01")), tmp_path / "there")
    finally:
        asking.mood = "well"
    assert again.config.transfer == there.config.transfer
    lottery.run(folder := here.established(), folder.tasks)
    arm = f"transfer.{label}"
    starts = [starting.start(run, Task(1, 0, arm)) for run in (here, there)]
    assert starts[0].mask == starts[1].mask
    assert starts[0].state.masked(starts[0].mask).digest() == starts[1].state.masked(starts[1].mask).digest()
    assert proof(tmp_path / "here") == proof(tmp_path / "there")
    other = Experiment.at(target(place(asking, whole, "s0-r02"), transfer={"rounds": "2"}), tmp_path / "other")
    held = next(iter(other.config.transfer.places.values()))
    assert tickets.load(Path(held) / "s0-r02.safetensors").mask == ticket_mask(whole, 2) != ticket_mask(whole, 1)

    (log,) = uploading.logs(there.paths.round(0, arm, 1))
    used = [f"team/lth_scale/{name(whole, 'theta_k')}:v0", place(asking, whole, "s0-r01").removeprefix("wandb:")]
    assert segments.uses(log) == used
    sync(there.paths)
    run = next(number for number in asking.runs if arm in number)
    assert run in versions(asking, whole, "theta_k")[0].users
    (log,) = uploading.logs(here.paths.round(0, arm, 1))
    kinds = ("theta_k:s0-r00", "ticket:s0-r01")
    assert segments.uses(log) == [f"lth_scale/{name(whole, kind)}" for kind in kinds]


def test_all_tickets_of_an_experiment_are_one_source_and_are_chosen_once(
    whole: Experiment, asking: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = name(whole, "ticket")
    monkeypatch.chdir(tmp_path)
    words = ["transfer", f"wandb:team/lth_scale/{ticket}", "--out=runs", "--to", "digits_lenet", "--plan"]
    words += ["--transfer.rounds=1,2", "--run.seeds=0", "--train.duration=24it", "--model.hidden=[20,10]"]
    assert main(words) == 0
    folder = Path("runs/.tickets/team/lth_scale") / ticket / "all"
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == ["s0-r00", "s0-r01", "s0-r02"]
    assert fetching.brought(folder)["s0-r02"] == place(asking, whole, "s0-r02").removeprefix("wandb:")
    before, asked = sorted(path.read_bytes() for path in folder.iterdir()), asking.asked
    assert main(words) == 0
    assert asking.asked == asked and sorted(path.read_bytes() for path in folder.iterdir()) == before


def damaged(found: Service, run: Experiment) -> None:
    body = bytearray(versions(found, run, "ticket")[0].files["ticket.safetensors"])
    body[-1] ^= 1
    versions(found, run, "ticket")[0].files["ticket.safetensors"] = bytes(body)


def without_theta_k(found: Service, run: Experiment) -> None:
    versions(found, run, "theta_k")[0].metadata = "{}"


def refusing(found: Service, run: Experiment) -> None:
    found.mood = "drop"


TROUBLES = {
    "no artifact": (
        "wandb:team/lth_scale/nothing:v0",
        None,
        r"has no ticket of that name; choose from: run-\w+\.ticket",
    ),
    "no version": ("wandb:team/lth_scale/TICKET:v9", None, r"has no version v9; choose from: .*v0 = .*s0-r0"),
    "damaged": ("wandb:team/lth_scale/TICKET:v0", damaged, r"TICKET:v0 is damaged"),
    "no theta_k": ("wandb:team/lth_scale/TICKET:v0", without_theta_k, r"theta_k has no version \w{12}, from which"),
    "no answer": ("wandb:team/lth_scale/TICKET:v0", refusing, r"did not answer within 5 s|W&B: \w+"),
    "no name": ("wandb:TICKET", None, r"is not valid; write wandb:ENTITY/PROJECT/NAME:v3"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_brought_is_said_before_work_is_done(
    trouble: str, whole: Experiment, asking: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, happens, message = TROUBLES[trouble]
    monkeypatch.setattr(fetching, "PATIENCE", 5.0 if trouble == "no answer" else 60.0)
    kept = [(version, dict(version.files), version.metadata) for version in asking.artifacts.versions]
    if happens:
        happens(asking, whole)
    ticket = name(whole, "ticket")
    try:
        with pytest.raises(UserError, match=message.replace("TICKET", ticket)) as caught:
            Experiment.at(target(words.replace("TICKET", ticket)), tmp_path / "run")
    finally:
        asking.mood = "well"
        for version, held, metadata in kept:
            version.files, version.metadata = held, metadata
    assert (
        "\n" not in str(caught.value)
        and not list(tmp_path.rglob("*.safetensors"))
        and not RunPaths(tmp_path / "run").config.exists()
    )


def test_without_a_key_nothing_is_brought(asking: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"transfer\.sources: wandb:team/p/n:v0: W&B: .*(api_key|API key|log ?in)"):
        fetching.fetched("wandb:team/p/n:v0", tmp_path)

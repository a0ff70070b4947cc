"""States that go through a disk of the node's own, and shards too: the same bits, and loud when that disk fails."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from proofs import DONE, USER, assert_same, leftovers, proof
from states import even, parts, same, spawned, state
from streamed_folders import batches, make_folder, opened
from tiny_runs import BASE, play, tiny

from lth_scale import checkpoint, files, resources, world
from lth_scale.checkpoint import Staging, staging
from lth_scale.errors import UserError


def publish(stage: Staging, folder: Path, seed: int, step: int) -> Path:
    """Collective: each rank gives its own parts."""
    made = state(seed, step)
    mine = parts(made, world.rank(), even(made, world.size()))
    return stage.publish(folder, mine, step, 1, {}, lambda: None)


def test_training_goes_on_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state appears when it has been carried, whole; before that the one before still counts."""
    stage, folder, go = Staging(tmp_path / "node", 20), tmp_path / "checkpoint", threading.Event()
    first = publish(stage, folder, 0, 3)
    stage.settle()
    deliver = staging._delivered

    def slowly(*words: object) -> None:
        go.wait(20)
        deliver(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(staging, "_delivered", slowly)
    second = publish(stage, folder, 1, 4)
    assert checkpoint.candidates(folder) == [first]
    go.set()
    stage.settle()
    assert checkpoint.candidates(folder) == [second] and same(checkpoint.load_state(second), state(1))
    assert not list((tmp_path / "node").iterdir()) and len(list(folder.iterdir())) == 1


@pytest.mark.distributed
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_meet_in_the_run_folder(size: int, tmp_path: Path) -> None:
    def work(rank: int) -> None:
        stage = Staging(tmp_path / f"node{rank}", 20)
        for step in (3, 4, 5):
            publish(stage, tmp_path / "checkpoint", step, step)
        stage.settle()

    assert spawned(size, tmp_path / "group", work) == [DONE] * size
    (last,) = (tmp_path / "checkpoint").iterdir()
    assert same(checkpoint.load_state(last), state(5)) and checkpoint.Stored.open(last).step == 5
    assert checkpoint.load_manifest(last)["world_size"] == size


def test_nothing_of_a_rank_follows_its_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rank may see the note, and give the folder its name, before the call that wrote it has returned."""
    own, shared, there = tmp_path / "own", tmp_path / "shared", tmp_path / "there"
    own.mkdir()
    shared.mkdir()
    _, sha256 = files.stream_bytes(own / "rank", [b"weights"])
    replace = os.replace

    def replaced(old: Path, new: Path) -> None:
        replace(old, new)
        if new.suffix == ".note":
            new.unlink()
            replace(shared, there)

    monkeypatch.setattr(os, "replace", replaced)
    staging._delivered(own, shared, {"name": "rank", "sha256": sha256})
    assert [path.name for path in there.iterdir()] == ["rank"]


@pytest.mark.distributed
def test_a_copy_that_differs_ends_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rank's file is bent on its way; the one before stays."""
    stream = files.stream_bytes

    def work(rank: int) -> None:
        stage, folder = Staging(tmp_path / f"node{rank}", 20), tmp_path / "checkpoint"
        publish(stage, folder, 0, 3)
        stage.settle()

        def bent(path: Path, pieces: object) -> tuple[int, str]:
            made = stream(path, pieces)  # type: ignore[arg-type]
            if rank == 1 and folder in path.parents:
                os.truncate(path, 10)
            return made

        monkeypatch.setattr(files, "stream_bytes", bent)
        publish(stage, folder, 1, 4)
        stage.settle()

    assert spawned(2, tmp_path / "group", work) == [USER] * 2
    (kept,) = (tmp_path / "checkpoint").glob("step_*")
    assert same(checkpoint.load_state(kept), state(0, 3)) and not list((tmp_path / "checkpoint").glob(".*"))


def test_an_attempt_that_was_overtaken_delivers_nothing(tmp_path: Path) -> None:
    def overtaken() -> None:
        raise UserError("taken over")

    stage, made = Staging(tmp_path / "node", 20), state(0, 3)
    stage.publish(tmp_path / "checkpoint", parts(made, 0, even(made, 1)), 3, 1, {}, overtaken)
    with pytest.raises(UserError, match="taken over"):
        stage.settle()
    assert not list((tmp_path / "checkpoint").iterdir())


def test_a_whole_run_has_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    train = {"checkpoint_every": "5it"}
    play(tiny(train=BASE["train"] | train), tmp_path / "plain")
    staged = BASE["hardware"] | {"scratch": "$NODE_DISK/states"}
    play(tiny(train=BASE["train"] | train, hardware=staged), tmp_path / "staged")
    assert_same(tmp_path / "staged", proof(tmp_path / "plain"))
    assert leftovers(tmp_path / "staged") == [] and not list((tmp_path / "node/states").iterdir())


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NODE_DISK", raising=False)
    with pytest.raises(UserError, match=r"hardware\.scratch='\$NODE_DISK/x' is not valid on this machine"):
        play(tiny(hardware=BASE["hardware"] | {"scratch": "$NODE_DISK/x"}), tmp_path)
    assert resources.on_this_machine("data.cache", "") is None


def test_shards_are_copied_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that could be read where they lie; the images are the same, and come from the copies."""
    make_folder(tmp_path / "far", [9, 6, 11, 7])
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "node"))
    wanted = [(x.clone(), y) for x, y in batches(opened(tmp_path / "far"))]
    assert not (tmp_path / "node").exists()
    staged = opened(tmp_path / "far", cache="$NODE_DISK/shards", stage=True)
    for (x, y), (again, labels) in zip(wanted, batches(staged), strict=True):
        assert torch.equal(x, again) and torch.equal(y, labels)
    assert len(list((tmp_path / "node/shards").glob("*.tar"))) == 4, "of the training split"

"""Whole rounds on encoded images, through real loader processes and real Trainers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_ranks import Run
from proofs import DONE, assert_same, children, ended, fork, gone, kill, proof
from streamed_folders import NAME, make_folder
from tiny_runs import established, play, result, rows, spying, tiny
from torch.nn import functional

from lth_scale import lottery, report, settings
from lth_scale.config import Config, Train
from lth_scale.errors import UserError
from lth_scale.training.mixing import Mixing

SAMPLES, STEPS = 41, 12  # two epochs of 5 steps, and a part of a third


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """41 training images in four shards, none for validation."""
    path = tmp_path_factory.mktemp("data") / "shards"
    make_folder(path, train=[7, 13, 11, 10], test=[6, 5])
    return path


def streamed(folder: Path, **changes: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {
        "data": dict(
            name=NAME, dir=str(folder), crop=8, lanes=4, window=3, augment="resized_crop", scaled_decode=True, workers=0
        ),
        "train": dict(
            duration=f"{STEPS}it", batch_size=8, lr=0.05, schedule="cosine", eval_every="4it", checkpoint_every="1it"
        ),
        "model": dict(name="resnet8", width=4),
        "rewind": dict(at="3it"),
        "prune": dict(rounds=1),
    }
    return tiny(**{name: sections.get(name, {}) | changes.get(name, {}) for name in sections.keys() | changes.keys()})


@pytest.fixture(scope="module")
def reference(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return proof(play(streamed(folder), tmp_path_factory.mktemp("reference")).paths.root)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(
    workers: int, folder: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    run = play(streamed(folder, data={"workers": workers}), tmp_path / "run")
    assert_same(run.paths.root, reference)


@pytest.mark.parametrize("change", [{"order": 9}, {"augment": 9}])
def test_another_stream_is_another_run(change: dict[str, int], folder: Path, tmp_path: Path) -> None:
    """The comparison above can fail."""
    plain, other = (
        play(streamed(folder, seeds=c), tmp_path / str(len(c)), lambda t: t.round == 0) for c in ({}, change)
    )
    assert result(plain, "ticket", 0)["hashes"]["weights"] != result(other, "ticket", 0)["hashes"]["weights"]


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_round_stopped_after_any_step_goes_on_with_the_batch_that_would_have_come(
    step: int, folder: Path, reference: dict[str, Any], tmp_path: Path
) -> None:
    config = streamed(folder, data={"workers": 2 * (step % 2)})
    run = established(config, tmp_path / "run")

    def stop(fit: Any, optimizer: Any) -> None:
        if len(fit.rates) == step + 1:  # that step is lost; the checkpoint is of the one before
            raise Stopped

    with spying() as spy:
        spy.after = stop
        with pytest.raises(Stopped):
            lottery.run(run, run.tasks)
    with spying() as again:
        lottery.run(run, run.tasks)
    lost = spy.fits[0].inputs[step]
    assert again.fits[0].inputs[0] == lost and len(again.fits[0].inputs) == STEPS - step
    assert_same(run.paths.root, reference)


@pytest.mark.kill
def test_a_killed_run_goes_on_bit_identically(folder: Path, reference: dict[str, Any], tmp_path: Path) -> None:
    """Its loader processes die with it."""
    config = streamed(folder, data={"workers": 2})

    def whole() -> None:
        play(config, tmp_path / "run")

    served = []
    for _ in range(3):
        done = len(list((tmp_path / "run").glob("seed_0/ticket/round_*/checkpoint/step_*/MANIFEST.json")))
        pid = fork(whole)
        while len(list((tmp_path / "run").glob("seed_0/ticket/round_*/checkpoint/step_*/MANIFEST.json"))) == done:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
        workers = [worker for child in children(pid) for worker in children(child)]  # of the fork server
        family = [*children(pid), *workers]
        kill(pid)
        ended(pid)
        while not all(map(gone, family)):
            time.sleep(0.02)  # the test's own limit ends this if they live on
        served.append(len(workers))
    assert max(served) == 2
    assert ended(fork(whole)) == DONE
    assert_same(tmp_path / "run", reference)


@pytest.mark.distributed
def test_two_ranks_give_the_bits_of_one_that_accumulates(folder: Path, tmp_path: Path) -> None:
    """Also when the world changes in the middle of the chain: each rank serves whole lanes of the same batches."""
    path = tmp_path / "config.yaml"
    path.write_text(settings.dump(streamed(folder, train={"micro_batch": 4}, data={"workers": 1})))
    roots = {name: tmp_path / name for name in ("one", "two", "changed")}

    def two(root: Path, *words: str) -> None:
        run = Run([str(path), *words], root)
        assert run.wait() == 0, run.told

    def one(root: Path) -> None:
        def whole() -> None:
            run = established(settings.parse([str(path), "--data.workers=0"]), root)
            lottery.run(run, run.tasks)

        assert ended(fork(whole)) == DONE

    one(roots["one"])
    two(roots["two"])
    two(roots["changed"], "--data.workers=0", "--only", "round=0")
    one(roots["changed"])
    weights = {
        name: [json.loads(p.read_text())["hashes"]["mask"] for p in sorted(root.glob("seed_0/*/*/result.json"))]
        for name, root in roots.items()
    }
    assert len(weights["one"]) == 2
    assert weights["one"] == weights["two"] == weights["changed"]


@pytest.mark.slow
def test_without_validation_test_is_on_the_grid_and_nothing_is_chosen(folder: Path, tmp_path: Path) -> None:
    run = play(streamed(folder, run={"seeds": (0, 1)}), tmp_path / "run")
    found = result(run, "ticket", 1)
    assert found["early_stop"] is None and found["thirds"]
    assert set(found["end"]) == {"step", "test", "train"} and found["end"]["test"]["samples"] == 11
    assert [line.split(",")[:2] for line in rows(run, "ticket", 0)] == [
        *(["4", "test"], ["4", "train"], ["8", "test"], ["8", "train"], ["12", "test"], ["12", "train"]),
    ]
    assert report.write_report([run.paths.root], tmp_path / "page").is_file()


@pytest.mark.slow
def test_held_out_images_are_validation(folder: Path, tmp_path: Path) -> None:
    run = play(streamed(folder, data={"held_out": 9}, train={"schedule": "constant"}), tmp_path / "run")
    found = result(run, "ticket", 0)
    assert found["end"]["validation"]["samples"] == 9 and found["early_stop"]["step"] in (4, 8, 12)
    assert found["clock"]["steps_per_epoch"] == (SAMPLES - 9) // 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": {"schedule": "constant"}}, "data.held_out=0 leaves .* no validation images"),
        ({"data": {"augment": "crop_flip"}}, "data.augment='crop_flip' is not for .*streamed; choose none or resized"),
        ({"data": {"lanes": 3}}, "data.lanes=3 does not divide train.batch_size=8; valid values.*: 1, 2, 4, 8"),
        ({"hardware": {"devices": 3}}, "train.batch_size=8 is not a multiple of 3 devices"),
        ({"data": {"lanes": 2}, "hardware": {"devices": 4}}, "data.lanes=2 is not a multiple of 4 devices"),
        ({"data": {"held_out": 41}}, "held_out=41 is not valid|train.batch_size=8 is not valid"),
    ],
)
def test_what_cannot_be_served_is_refused_before_any_work(
    changes: dict[str, dict[str, Any]], told: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        established(streamed(folder, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "field", [{"crop": 32}, {"held_out": 5}, {"lanes": 4}, {"scaled_decode": True}, {"faults": 0.1}, {"window": 9}]
)
def test_fields_of_streams_are_refused_for_data_in_memory(field: dict[str, Any], tmp_path: Path) -> None:
    (key,) = field
    with pytest.raises(UserError, match=f"data.{key}=.* is not for data.name=digits, which is in memory"):
        established(tiny(data=field), tmp_path / "run")


# --- what is mixed into a batch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_is_a_pure_function_of_the_step_and_keeps_the_mass(train: dict[str, float]) -> None:
    mixing = Mixing(Train(**train), 5, seed=3, noise=0)
    images, labels = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    before = torch.random.get_rng_state()
    first, again, other = (mixing(images, labels, step, 0) for step in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1]) and not torch.equal(mixing(images, labels, 7, 1)[1], first[1])
    assert first[1].shape == (6, 5) and torch.allclose(first[1].sum(1), torch.ones(6))


@pytest.mark.slow
def test_mixed_rounds_resume_bit_identically_and_differ_from_plain_ones(folder: Path, tmp_path: Path) -> None:
    config = streamed(folder, train={"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}, data={"randaugment": 5})
    whole = play(config, tmp_path / "whole")
    run = established(config, tmp_path / "run")
    with spying() as spy:
        spy.after = lambda fit, optimizer: (_ for _ in ()).throw(Stopped()) if len(fit.rates) == 6 else None
        with pytest.raises(Stopped):
            lottery.run(run, run.tasks)
    lottery.run(run, run.tasks)
    assert_same(run.paths.root, proof(whole.paths.root))
    plain = play(streamed(folder), tmp_path / "plain", lambda task: task.round == 0)
    assert result(plain, "ticket", 0)["hashes"]["weights"] != result(whole, "ticket", 0)["hashes"]["weights"]


def test_label_smoothing_reaches_the_loss(folder: Path, tmp_path: Path) -> None:
    smoothed = []
    with pytest.MonkeyPatch.context() as patch:
        real = functional.cross_entropy
        patch.setattr(
            functional, "cross_entropy", lambda *a, **k: smoothed.append(k.get("label_smoothing")) or real(*a, **k)
        )
        play(streamed(folder, train={"label_smoothing": 0.1}), tmp_path / "run", lambda task: task.round == 0)
    assert smoothed.count(0.1) == STEPS


@pytest.mark.slow
def test_channels_last_trains_the_same_tickets_to_rounding(folder: Path, tmp_path: Path) -> None:
    plain, last = (
        play(streamed(folder, hardware={"channels_last": flag}), tmp_path / str(flag)) for flag in (False, True)
    )
    for number in (0, 1):
        ours, theirs = (result(run, "ticket", number) for run in (plain, last))
        assert ours["density"] == theirs["density"] and theirs["zeros"]["nonzero"] == 0
        assert ours["end"]["test"]["loss"] == pytest.approx(theirs["end"]["test"]["loss"], rel=1e-2)


def test_images_are_normalised_once_and_on_the_device(folder: Path, tmp_path: Path) -> None:
    run = established(streamed(folder), tmp_path / "run")
    seen: list[torch.Tensor] = []
    model = run.model(0)
    handle = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0]) if type(module) is type(model) and len(inputs[0]) == 8 else None
    )
    try:
        lottery.run(run, run.tasks[:1])
    finally:
        handle.remove()
    assert all(x.dtype == torch.float32 and x.shape[1:] == (3, 8, 8) for x in seen)
    assert float(seen[0].min()) > -2.5 and float(seen[0].max()) < 2.7 and float(seen[0].std()) > 0.5


@pytest.fixture(autouse=True)
def one_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield

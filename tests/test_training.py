"""One round: zeros that stay zeros, the learning rate of every step, resuming, and a test set that no choice reads."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_runs import (
    EPOCH,
    ONCE,
    RESNET,
    Fit,
    Spy,
    T,
    dense,
    established,
    final,
    play,
    result,
    rows,
    spy,
    theta,
    ticket_mask,
    tiny,
)
from torch.optim.optimizer import Optimizer

from lth_scale import lottery, pruning
from lth_scale.checkpoint import Composite, Source
from lth_scale.config import Rates, Train
from lth_scale.data import Split
from lth_scale.masks import Mask
from lth_scale.tasks import Task
from lth_scale.training.masking import Masking
from lth_scale.training.schedule import Schedule

assert spy  # a fixture

OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """float32 -> int32 of the same bits: 0 is +0.0 and nothing else."""
    return tensor.detach().contiguous().view(torch.int32)


# zeros


def pruned_places(fit: Fit, optimizer: Optimizer, mask: Mask) -> tuple[int, int, int]:
    """Pruned weights that are not 0; those that are not +0.0; and entries of their optimizer state that are not 0."""
    weights = signed = state = 0
    for name, parameter in fit.model.named_parameters():
        if name in mask:
            weights += int((parameter[~mask[name]] != 0).sum())
            signed += int((bits(parameter)[~mask[name]] != 0).sum())
            held = [t for t in optimizer.state[parameter].values() if torch.is_tensor(t) and t.shape == parameter.shape]
            assert held
            state += sum(int((tensor[~mask[name]] != 0).sum()) for tensor in held)
    return weights, signed, state


def watch(spy: Spy, masks: Callable[[], Mask]) -> list[tuple[int, int, int]]:
    """Counts of ``pruned_places`` after every step of the rounds to come."""
    seen: list[tuple[int, int, int]] = []
    spy.after = lambda fit, optimizer: seen.append(pruned_places(fit, optimizer, masks()))
    return seen


@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_are_plus_zero_at_every_step(optimizer: str, decay: str, spy: Spy, tmp_path: Path) -> None:
    train = {"optimizer": optimizer, "decay": decay, "weight_decay": 0.1, "lr": 0.01, "micro_batch": 50}
    run = play(tiny(train=train, rewind={"at": "7it"}, prune={"rounds": 1, "rate": 0.6}), tmp_path, dense)
    mask = ticket_mask(run, 1)
    seen = watch(spy, lambda: mask)
    lottery.run(run, run.tasks)
    assert seen == [(0, 0, 0)] * (T - 7)
    assert len(spy.fits[-1].rates[0]) == (2 if decay == "weights" else 1)  # parameter groups
    start, end = spy.fits[-1].start, final(run, "ticket", 1)
    assert all(bool((bits(state.weights[n])[~mask[n]] == 0).all()) for state in (start, end) for n in mask)
    assert start.optimizer, "momentum was restored, and masked"
    assert result(run, "ticket", 1)["zeros"] == {"pruned": mask.numel - mask.kept, "nonzero": 0}
    assert any(bool((end.weights[n] != start.weights[n]).any()) for n in mask), "it trained"


@pytest.mark.parametrize("recipe", ["lr_rewinding", "openlth"])
def test_zeros_hold_for_batchnorm_networks_and_other_recipes(recipe: str, spy: Spy, tmp_path: Path) -> None:
    train = ONCE | {"weight_decay": 0.01, "optimizer": "nesterov"}
    changes: dict[str, Any] = {"model": RESNET, "rewind": {"at": "7it", "recipe": recipe}}
    run = play(tiny(**changes, train=train, prune={"rounds": 1, "rate": 0.6}), tmp_path, dense)
    seen = watch(spy, lambda: ticket_mask(run, 1))
    lottery.run(run, run.tasks)
    assert seen == [(0, 0, 0)] * (T - 7)


def nothing(*_: Any) -> None:
    """Instead of a mechanism."""


@pytest.mark.parametrize(
    ("off", "holds"),
    [
        (("weights",), (True, True, True)),
        (("gradients",), (True, True, False)),
        (("gradients", "weights"), (False, False, False)),
    ],
    ids=["gradients only", "weights only", "neither"],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_each_half_of_the_masking_has_its_part(
    optimizer: str,
    off: tuple[str, ...],
    holds: tuple[bool, bool, bool],
    spy: Spy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Masked gradients keep weights and optimizer state zero; the weights' hook alone the weights.

    Both are there since another optimizer may move weights without a gradient. Without either they revive.
    """
    run = play(tiny(train={"optimizer": optimizer, "lr": 0.01}, rewind={"at": "7it"}), tmp_path, dense)
    seen = watch(spy, lambda: ticket_mask(run, 1))
    for mechanism in off:
        monkeypatch.setattr(Masking, mechanism, nothing)
    first = [task for task in run.tasks if task.round == 1]
    if all(holds):
        lottery.run(run, first)
    else:
        with pytest.raises(RuntimeError, match="are not zero"):
            lottery.run(run, first)
        assert not first[0].done(run.paths), "the round is refused"
    assert tuple(not any(counts) for counts in zip(*seen, strict=True)) == holds


def test_momentum_that_was_not_masked_would_revive_weights(
    spy: Spy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = play(tiny(rewind={"at": "7it"}), tmp_path, dense)
    seen = watch(spy, lambda: ticket_mask(run, 1))
    masked = Source.masked
    forget = lambda self, mask: Composite(masked(self, mask), self, self, self.step)  # noqa: E731
    monkeypatch.setattr(Source, "masked", forget)
    monkeypatch.setattr(Masking, "weights", nothing)
    with pytest.raises(RuntimeError, match="are not zero"):
        lottery.run(run, [task for task in run.tasks if task.round == 1])
    assert all(weights and state for weights, _, state in seen)


def test_clipping_does_not_see_pruned_gradients(spy: Spy, tmp_path: Path) -> None:
    run = play(tiny(), tmp_path, dense)
    mask = ticket_mask(run, 1)
    wrong = []

    def look(fit: Fit, optimizer: Optimizer) -> None:
        gradients = {name: p.grad for name, p in fit.model.named_parameters() if p.grad is not None}
        wrong.append(sum(int((gradients[name][~mask[name]] != 0).sum()) for name in mask))

    spy.after = look
    lottery.run(run, [task for task in run.tasks if task.round == 1])
    assert wrong == [0] * T


# masks over the rounds


@pytest.mark.parametrize(
    "prune",
    [
        {"scope": "global", "rate": 0.35},
        {"scope": "layer", "rate": 0.2, "rates": {"output": 0.1}},
        {"scope": "layer", "rate": 0.9, "min_per_layer": 30},
        {"scope": "global", "rate": 0.5, "rates": {"output": 0.0}},
    ],
    ids=["global", "layer", "floor", "output kept"],
)
def test_masks_only_shrink_and_count_exactly_what_was_planned(prune: dict[str, Any], tmp_path: Path) -> None:
    rates = Rates(**prune.get("rates", {}))
    config = tiny(prune=prune | {"rounds": 4, "rates": rates}, train={"duration": "4it", "eval_every": "4it"})
    run = play(config, tmp_path)
    planned = pruning.plan(run.prunable, config.prune)
    before = Mask.ones({p.name: p.shape for p in run.prunable})
    for number in range(1, 5):
        mask = ticket_mask(run, number)
        assert mask.within(before)
        assert mask.kept == planned[number].kept
        if planned[number].per_tensor is not None:
            assert {name: kept for name, (kept, _) in mask.counts().items()} == planned[number].per_tensor
        assert result(run, "ticket", number)["density"] == planned[number].density
        before = mask


def test_the_largest_weights_of_the_end_survive(tmp_path: Path) -> None:
    run = play(tiny(prune={"rate": 0.3, "rounds": 1}), tmp_path)
    end, mask = final(run, "ticket", 0), ticket_mask(run, 1)
    kept = torch.cat([end.weights[n][mask[n]].abs() for n in mask])
    gone = torch.cat([end.weights[n][~mask[n]].abs() for n in mask])
    assert kept.min() >= gone.max()
    assert len(gone) == round(0.3 * mask.numel)


# the learning rate


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {0: 0.4, 17: 0.4, 99: 0.4}),
        ({"warmup": "4it"}, {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.4, 99: 0.4}),
        ({"warmup": "1ep"}, {0: 0.04, 8: 0.36, 9: 0.4, 10: 0.4}),
        (
            {"schedule": "multistep", "milestones": ("50it", "7.5ep"), "warmup": "2it"},
            {0: 0.2, 1: 0.4, 49: 0.4, 50: 0.04, 74: 0.04, 75: 0.004, 99: 0.004},
        ),
        ({"schedule": "multistep", "milestones": ("50it",), "gamma": 0.5}, {49: 0.4, 50: 0.2}),
        ({"schedule": "cosine"}, {0: 0.4, 25: 0.34142135623730954, 50: 0.2, 75: 0.05857864376269051}),
        ({"schedule": "cosine", "warmup": "20it"}, {0: 0.02, 19: 0.4, 20: 0.4, 60: 0.2, 40: 0.34142135623730954}),
    ],
)
def test_schedules_at_exact_steps(fields: dict[str, Any], expected: dict[int, float]) -> None:
    config = Train(lr=0.4, **fields)
    schedule = Schedule(config, 100, EPOCH)
    assert {step: schedule.at(step) for step in expected} == pytest.approx(expected, rel=1e-12)
    assert config.drops == ("schedule" in fields)


def test_cosine_ends_near_zero_and_falls_all_the_way() -> None:
    schedule = Schedule(Train(lr=0.4, schedule="cosine", warmup="5it"), 100, EPOCH)
    rates = [schedule.at(step) for step in range(5, 100)]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < 0.001


MULTISTEP = {"schedule": "multistep", "milestones": ("12it", "20it"), "warmup": "3it"}
COSINE = {"schedule": "cosine", "warmup": "3it"}


@pytest.mark.parametrize("schedule", [MULTISTEP, COSINE], ids=["multistep", "cosine"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_step_uses_the_rate_of_its_place(
    optimizer: str, schedule: dict[str, Any], spy: Spy, tmp_path: Path
) -> None:
    train = schedule | {"optimizer": optimizer, "decay": "weights", "micro_batch": 50}
    run = play(tiny(train=train, rewind={"at": "7it"}, prune={"rounds": 1}), tmp_path)
    told = [(rate, rate) for rate in map(Schedule(run.config.train, T, EPOCH).at, range(T))]
    assert [fit.rates for fit in spy.fits] == [told, told[7:]]


# resuming


class PowerCut(Exception):
    """Of the test."""


def cut_at(spy: Spy, step: int) -> None:
    def cut(fit: Fit, optimizer: Optimizer) -> None:
        if fit.start.step + len(fit.rates) == step:
            raise PowerCut

    spy.after = cut


@pytest.mark.slow
@pytest.mark.parametrize("at_k", [False, True], ids=["between", "at k"])
@pytest.mark.parametrize("recipe", ["continue", "openlth"])
def test_an_interrupted_round_goes_on_bit_for_bit(recipe: str, at_k: bool, spy: Spy, tmp_path: Path) -> None:
    """Cut in both rounds; also right behind the checkpoint of step k, where openlth breaks the momentum."""
    train = COSINE | ONCE | {"checkpoint_every": "7it" if at_k else "5it", "micro_batch": 50}
    model = {} if at_k else RESNET
    changes: dict[str, Any] = {"model": model, "data": {"augment": "crop_flip"}, "prune": {"rounds": 1}}
    config = tiny(**changes, train=train, rewind={"at": "7it", "recipe": recipe})
    whole = play(config, tmp_path / "whole")
    spy.fits.clear()
    for step in (9, 23):
        cut_at(spy, step)
        with pytest.raises(PowerCut):
            play(config, tmp_path / "cut")
    cut_at(spy, 16)
    with pytest.raises(PowerCut):
        play(config, tmp_path / "cut")
    spy.after = Spy().after
    cut = play(config, tmp_path / "cut")
    # Round 0 to step 9, on to 23, to its end; round 1 from k = 7 to step 16, and to its end. (start, steps) of each:
    every = 7 if at_k else 5
    later = [every * (step // every) for step in (9, 23, 16)]
    assert [fit.start.step for fit in spy.fits] == [0, later[0], later[1], 7, later[2]]
    told = [(rate,) for rate in map(Schedule(config.train, T, EPOCH).at, range(T))]
    for fit in spy.fits:
        assert fit.rates == told[fit.start.step : fit.start.step + len(fit.rates)]
    for number in (0, 1):
        assert final(cut, "ticket", number).differences(final(whole, "ticket", number)) == []
        assert rows(cut, "ticket", number) == rows(whole, "ticket", number)
    assert theta(cut, 7).differences(theta(whole, 7)) == []
    assert ticket_mask(cut, 2) == ticket_mask(whole, 2)
    assert [result(cut, "ticket", number)["attempt"] for number in (0, 1)] == [3, 2]


def test_the_same_command_again_trains_nothing(spy: Spy, tmp_path: Path) -> None:
    config = tiny(prune={"rounds": 1})
    play(config, tmp_path)
    play(config, tmp_path)
    assert len(spy.fits) == 2
    play(replace(config, prune=replace(config.prune, rounds=2)), tmp_path)
    assert len(spy.fits) == 3


def test_a_finished_round_without_its_done_marker_is_not_trained_again(spy: Spy, tmp_path: Path) -> None:
    run = play(tiny(prune={"rounds": 0}), tmp_path)
    path = run.paths.round(0, "ticket", 0).result
    before = result(run, "ticket", 0)
    path.unlink()
    lottery.run(run, run.tasks)
    after = result(run, "ticket", 0)
    assert len(spy.fits) == 1
    changing = ("attempt", "seconds")
    assert {k: v for k, v in after.items() if k not in changing} == {
        k: v for k, v in before.items() if k not in changing
    }


# what is measured, and what is read


def validation_of(lines: list[str]) -> list[tuple[int, float]]:
    found = [line.split(",") for line in lines]
    return [(int(step), float(loss)) for step, split, loss, *_ in found if split == "validation"]


def steps_of(lines: list[str], split: str) -> list[int]:
    return [int(line.split(",")[0]) for line in lines if line.split(",")[1] == split]


@pytest.mark.parametrize("lr", [0.05, 1.0])
def test_test_and_train_are_measured_at_new_minima_of_validation_loss_and_at_the_end(lr: float, tmp_path: Path) -> None:
    run = play(tiny(train={"eval_every": "2it", "lr": lr}, rewind={"at": "7it"}, prune={"rounds": 1}), tmp_path)
    for number, grid in ((0, range(2, T + 1, 2)), (1, range(8, T + 1, 2))):
        lines = rows(run, "ticket", number)
        validation = validation_of(lines)
        assert [step for step, _ in validation] == list(grid)
        new = [step for i, (step, loss) in enumerate(validation) if all(loss < other for _, other in validation[:i])]
        assert steps_of(lines, "test") == steps_of(lines, "train") == sorted({*new, T})
        assert len(new) < len(validation) or lr < 1


def test_no_choice_reads_test(tmp_path: Path) -> None:
    """With the test labels scrambled, everything but the test figures stays as it was."""
    changes: dict[str, Any] = {"run": {"arms": ("ticket", "reinit", "random")}, "train": {"eval_every": "4it"}}
    honest = play(tiny(**changes), tmp_path / "honest")
    scrambled = established(tiny(**changes), tmp_path / "scrambled")
    test = honest.dataset.test
    scrambled.__dict__["dataset"] = replace(honest.dataset, test=Split(test.images, test.labels.flip(0)))
    lottery.run(scrambled, scrambled.tasks)
    for task in honest.tasks:
        one, other = (without_test(run, task) for run in (honest, scrambled))
        assert one == other
        pair = [json.loads(task.paths(run.paths).result.read_text())["end"]["test"] for run in (honest, scrambled)]
        assert pair[0] != pair[1], "the labels were scrambled"
        assert final(honest, task.arm, task.round).differences(final(scrambled, task.arm, task.round)) == []


def without_test(run: Any, task: Task) -> dict[str, Any]:
    found = json.loads(task.paths(run.paths).result.read_text())
    found["end"].pop("test"), found["early_stop"].pop("test"), found.pop("seconds")
    return dict(found)


@pytest.mark.parametrize("aside", [False, True])
def test_a_round_leaves_no_trainer_and_sets_nothing_aside(
    aside: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What refers to itself is freed; what somebody has frozen stays so, and nothing else does."""
    trainers: list[weakref.ref[pl.Trainer]] = []
    fit = pl.Trainer.fit

    def noted(self: pl.Trainer, *args: Any, **options: Any) -> None:
        trainers.append(weakref.ref(self))
        assert gc.get_freeze_count() > 1000
        fit(self, *args, **options)

    monkeypatch.setattr(pl.Trainer, "fit", noted)
    assert gc.get_freeze_count() == 0
    if aside:
        gc.freeze()
    before = gc.get_freeze_count()
    try:
        play(tiny(), tmp_path, dense)
        assert len(trainers) == 1 and trainers[0]() is None
        assert 0.9 * before <= gc.get_freeze_count() <= before
    finally:
        gc.unfreeze()

"""Averaged weights: evaluated, stored, rewound, masked and pruned by, and of no influence on what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    RESNET,
    Fit,
    Spy,
    T,
    dense,
    final,
    play,
    result,
    rows,
    spy,
    theta,
    ticket_mask,
    tiny,
)
from torch.nn import functional
from torch.optim import Optimizer

from lth_scale import lottery
from lth_scale.checkpoint import State
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.shards import EMA
from lth_scale.training import averages, callbacks
from lth_scale.training.averages import Average

assert spy  # a fixture

DECAY, K = 0.9, 7
TRAIN = {"ema": DECAY, "eval_every": "24it", "optimizer": "adam", "lr": 0.005}


def config(recipe: str = "continue", **changes: dict[str, Any]) -> Any:
    base: dict[str, Any] = {"train": TRAIN, "rewind": {"at": f"{K}it", "recipe": recipe}}
    return tiny(**(base | {"prune": {"rounds": 1, "rate": 0.5}} | changes))


def averaged(state: State) -> dict[str, torch.Tensor]:
    return {name: state.optimizer[name][EMA] for name in state.weights}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[n].view(torch.int32), other[n].view(torch.int32)) for n in one
    )


def under(mask: Mask, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.where(mask[name], 0.0) if name in mask else tensor for name, tensor in tensors.items()}


Step = tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]


@contextmanager
def stepping() -> Iterator[list[Step]]:
    """(Step, weights, average before, average behind) of every step inside."""
    seen: list[Step] = []
    real = Average.on_step

    def stepped(self: Average, trainer: Any, module: Any, step: int) -> None:
        copies: list[dict[str, torch.Tensor]] = []
        copies.append({s.name: s.weights.detach().clone() for s in module.shards.local()})
        copies.append({name: value.clone() for name, value in module.shards.averages.items()})
        real(self, trainer, module, step)
        copies.append({name: value.clone() for name, value in module.shards.averages.items()})
        seen.append((step, copies[0], copies[1], copies[2]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Average, "on_step", stepped)
        yield seen


def test_every_step_moves_the_average_towards_the_weights(tmp_path: Path) -> None:
    with stepping() as seen:
        play(config(), tmp_path)
    assert [step for step, *_ in seen] == [*range(1, T + 1), *range(K + 1, T + 1)]
    for _, weights, before, behind in seen:
        for name, value in behind.items():
            torch.testing.assert_close(value, DECAY * before[name] + (1 - DECAY) * weights[name])
    for earlier, later in pairwise(seen):
        assert same(earlier[3], later[2]) or later[0] == K + 1


def test_training_is_what_it_is_without_averages(tmp_path: Path) -> None:
    """Though every evaluation computes with them: the weights come back, bit for bit, and so do the masks."""
    often = TRAIN | {"eval_every": "4it"}
    with_, without = (play(config(train=often | {"ema": ema}), tmp_path / str(ema)) for ema in (DECAY, 0.0))
    for number in (0, 1):
        assert same(final(with_, "ticket", number).weights, final(without, "ticket", number).weights)
        assert ticket_mask(with_, number + 1) == ticket_mask(without, number + 1)
        measures = [set(rows(run, "ticket", number)) for run in (with_, without)]
        assert not measures[0] & measures[1], "other values are measured"


def loss(run: Experiment, weights: dict[str, torch.Tensor]) -> float:
    """On the test images."""
    model = run.model(0)
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model.eval()(run.dataset.normalise(run.dataset.test.images))
    return float(functional.cross_entropy(logits, run.dataset.test.labels, reduction="none").double().mean())


def test_what_is_evaluated_are_the_averages(tmp_path: Path) -> None:
    run = play(config(), tmp_path)
    for number in (0, 1):
        state, told = final(run, "ticket", number), result(run, "ticket", number)["end"]["test"]["loss"]
        assert told == pytest.approx(loss(run, averaged(state)), rel=1e-6)
        assert told != pytest.approx(loss(run, state.weights), rel=1e-2)


RECIPES = ["continue", "weight_rewinding", "lr_rewinding", "fine_tuning", "openlth", "restart"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_round_starts_from_the_masked_average_of_its_source(recipe: str, tmp_path: Path) -> None:
    """That of step k or of the end, where the recipe restores optimizer state; else it begins at the weights."""
    run = play(config(recipe), tmp_path, dense)
    with stepping() as seen:
        lottery.run(run, run.tasks)
    mask, start = ticket_mask(run, 1), seen[0][2]
    source = final(run, "ticket", 0) if recipe in ("lr_rewinding", "fine_tuning") else theta(run, K)
    fresh = recipe in ("openlth", "restart")
    assert same(start, under(mask, source.weights if fresh else averaged(source)))
    assert not same(averaged(source), source.weights)
    for _, _, _, average in seen:
        assert same(average, under(mask, average))
    last = averaged(final(run, "ticket", 1))
    assert same(last, seen[-1][3]), "stored"
    assert result(run, "ticket", 1)["zeros"]["nonzero"] == 0


def test_where_the_dense_pass_drops_its_optimizer_state_the_average_begins_anew(tmp_path: Path) -> None:
    with stepping() as seen:
        run = play(config("openlth"), tmp_path, dense)
    at_k, following = seen[K - 1], seen[K]
    assert same(following[2], at_k[1]) and not same(following[2], at_k[3])
    assert same(averaged(theta(run, K)), at_k[3]), "what is stored is of before"


def test_an_average_that_was_not_masked_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The control: a start that leaves pruned places in the average."""
    run = play(config("openlth"), tmp_path, dense)

    def unmasked(shards: Any) -> None:
        shards.averages = {s.name: torch.ones_like(s.weights) for s in shards.local()}

    monkeypatch.setattr(averages, "start_averages", unmasked)
    with pytest.raises(RuntimeError, match="are not zero"):
        lottery.run(run, run.tasks)


class PowerCut(Exception):
    """Of the test."""


@pytest.mark.parametrize("recipe", ["continue", "openlth"])
def test_an_interrupted_round_goes_on_with_its_average(recipe: str, spy: Spy, tmp_path: Path) -> None:
    made = config(recipe, train=TRAIN | {"checkpoint_every": "7it"})
    whole = play(made, tmp_path / "whole")

    def cut(fit: Fit, optimizer: Optimizer) -> None:
        if fit.start.step + len(fit.rates) in stops:
            raise PowerCut

    spy.after = cut
    for stop in (10, 23):  # in either round
        stops = [stop]
        with pytest.raises(PowerCut):
            play(made, tmp_path / "cut")
    stops = []
    again = play(made, tmp_path / "cut")
    for number in (0, 1):
        assert final(again, "ticket", number).differences(final(whole, "ticket", number)) == []
        assert rows(again, "ticket", number) == rows(whole, "ticket", number)


# pruning


@pytest.mark.parametrize("by", ["raw", "ema"])
def test_weights_are_pruned_by_what_the_config_says(by: str, tmp_path: Path) -> None:
    run = play(config(prune={"rounds": 1, "rate": 0.5, "weights": by}), tmp_path)
    for number in (0, 1):
        assert result(run, "ticket", number)["pruned_by"] == by
    state, mask = final(run, "ticket", 0), ticket_mask(run, 1)
    chosen, other = (averaged(state), state.weights) if by == "ema" else (state.weights, averaged(state))

    def separated(weights: dict[str, torch.Tensor]) -> bool:
        kept = torch.cat([weights[n][mask[n]].abs() for n in mask])
        gone = torch.cat([weights[n][~mask[n]].abs() for n in mask])
        return bool(kept.min() >= gone.max())

    assert separated(chosen) and not separated(other)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prune\.weights='ema' is not valid without averages; set train\.ema"):
        Experiment.at(tiny(prune={"weights": "ema"}), tmp_path)
    with pytest.raises(UserError, match=r"train\.ema=0\.9 is not valid with resnet8: running statistics of BatchNorm"):
        Experiment.at(tiny(train={"ema": 0.9}, model=RESNET), tmp_path)
    Experiment.at(tiny(train={"ema": 0.9}, prune={"weights": "ema"}), tmp_path)


def test_the_proof_of_the_start_reads_the_average(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The control: an average that is restored wrongly stops the round."""
    run = play(config(), tmp_path, dense)
    restore = callbacks.restore

    def wrong(shards: Any, source: Any) -> None:
        restore(shards, source)
        next(iter(shards.averages.values())).view(-1)[0] += 1.0

    monkeypatch.setattr(callbacks, "restore", wrong)
    with pytest.raises(RuntimeError, match=f"optimizer/.*/{EMA} differ"):
        lottery.run(run, run.tasks)

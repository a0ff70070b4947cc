"""Early-Bird: the dense round ends when its masks agree, and everything that follows is as if that had been planned."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from proofs import assert_same, proof
from tiny_runs import BASE, EPOCH, Fit, Spy, established, final, play, result, tiny
from tiny_runs import spy as spy
from torch.optim import Optimizer

from lth_scale import checkpoint, lottery
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.report import headline, read_run, summary
from lth_scale.training.early_bird import WINDOW

pytestmark = pytest.mark.slow

EPOCHS = 12
LONG = {
    **BASE["train"],
    "duration": f"{EPOCHS}ep",
    "schedule": "cosine",
    "eval_every": "1ep",
    "checkpoint_every": "9it",
}


def config(threshold: float, **changes: Any) -> Config:
    return tiny(
        train=LONG,
        rewind={"at": "1ep"},
        prune={"rounds": 1, "early_bird": threshold},
        run={"seeds": (0,), "arms": ("ticket", "dense_from_k")},
        **changes,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Without Early-Bird, its states of each epoch stored."""
    kept = {"at": "1ep", "keep": tuple(f"{epoch}ep" for epoch in range(2, EPOCHS))}
    made = config(0.0)
    return play(replace(made, rewind=replace(made.rewind, **kept)), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def masks(whole: Experiment) -> list[Mask]:
    """What each epoch's weights would leave: 20 % of them removed by magnitude, found here by sorting."""
    found = []
    for epoch in range(1, EPOCHS):
        weights = checkpoint.load_state(whole.paths.rewind(0, epoch * EPOCH)).weights
        flat = torch.cat([weights[p.name].abs().flatten() for p in whole.prunable])
        kept = torch.ones(len(flat), dtype=torch.bool)
        kept[flat.sort(stable=True).indices[: round(0.2 * len(flat))]] = False
        pieces = kept.split([p.numel for p in whole.prunable])
        found.append(Mask({p.name: piece.reshape(p.shape) for p, piece in zip(whole.prunable, pieces, strict=True)}))
    return found


def spreads(masks: list[Mask]) -> dict[int, float]:
    """The largest distance among five consecutive masks, by the epoch of the last."""
    return {
        last: max(
            first.distance(second) for first in masks[last - WINDOW : last] for second in masks[last - WINDOW : last]
        )
        for last in range(WINDOW, len(masks) + 1)
    }


def test_distance_is_the_share_of_weights_that_differ() -> None:
    one, other = Mask({"a": torch.tensor([[1, 1, 0], [0, 1, 0]]).bool()}), Mask({"a": torch.ones(2, 3).bool()})
    assert one.distance(other) == other.distance(one) == 3 / 6 and one.distance(one) == 0


def test_the_dense_round_ends_at_the_first_epoch_whose_masks_agree(
    whole: Experiment, masks: list[Mask], tmp_path: Path
) -> None:
    told = spreads(masks)
    epoch = 8
    threshold = told[epoch] * 1.0001
    assert all(told[earlier] > threshold for earlier in range(WINDOW, epoch))  # else the test would show nothing
    run = play(config(threshold), tmp_path)
    dense = result(run, "ticket", 0)
    assert dense["early_bird"] == {"step": epoch * EPOCH, "planned": EPOCHS * EPOCH, "distance": told[epoch]}
    assert dense["clock"]["end"] == dense["end"]["step"] == epoch * EPOCH and dense["end"]["test"]["accuracy"] > 0
    state = checkpoint.load_state(whole.paths.rewind(0, epoch * EPOCH))
    assert not {key for key in final(run, "ticket", 0).differences(state) if key.startswith("weights")}
    assert Mask.load(run.paths.round(0, "ticket", 1).mask) == masks[epoch - 1]
    assert not run.paths.round(0, "ticket", 0).early_bird.exists()
    ticket = result(run, "ticket", 1)["clock"]
    assert (ticket["start"], ticket["end"]) == (EPOCH, EPOCHS * EPOCH)  # tickets are trained to the end
    assert result(run, "dense_from_k", 1)["hashes"] == result(whole, "dense_from_k", 1)["hashes"]
    assert "Early-Bird ended the dense round at epoch 8 and saved 33% of its steps (n = 1)." in headline(tmp_path)
    rows = summary(read_run(tmp_path)).set_index(["arm", "round"])
    full = 100 * result(run, "dense_from_k", 1)["end"]["test"]["accuracy"]
    assert rows.loc[("ticket", 0), "difference"] == pytest.approx(100 * dense["end"]["test"]["accuracy"] - full)


def test_where_masks_never_agree_the_round_is_the_one_without(whole: Experiment, tmp_path: Path) -> None:
    run = play(config(1e-9), tmp_path)
    assert result(run, "ticket", 0)["hashes"] == result(whole, "ticket", 0)["hashes"]
    found = result(run, "ticket", 0)["early_bird"]
    assert found["step"] == found["planned"] == EPOCHS * EPOCH and found["distance"] > 1e-9


def test_it_ends_no_earlier_than_theta_k(tmp_path: Path) -> None:
    made = config(0.99)
    run = play(replace(made, rewind=replace(made.rewind, at="7ep")), tmp_path)
    assert result(run, "ticket", 0)["early_bird"]["step"] == 7 * EPOCH
    assert result(play(made, tmp_path / "early"), "ticket", 0)["early_bird"]["step"] == WINDOW * EPOCH


class Interrupted(Exception):
    """Between two steps."""


@pytest.mark.parametrize("at", [47, 73, 79])
def test_an_interrupted_round_ends_at_the_same_epoch_with_the_same_bits(
    at: int, masks: list[Mask], spy: Spy, tmp_path: Path
) -> None:
    threshold = spreads(masks)[8] * 1.0001
    reference = proof(play(config(threshold), tmp_path / "whole").paths.root)
    run = established(config(threshold), tmp_path / "halves")

    def stop(fit: Fit, _: Optimizer) -> None:
        if fit.start.step + len(fit.rates) == at and fit.start.step == 0:
            raise Interrupted

    spy.after = stop
    with pytest.raises(Interrupted):
        lottery.run(run, run.tasks)
    spy.after = lambda fit, optimizer: None
    lottery.run(run, run.tasks)
    assert_same(run.paths.root, reference)


def test_a_kill_between_the_last_checkpoint_and_the_result_trains_no_further(masks: list[Mask], tmp_path: Path) -> None:
    run = play(config(spreads(masks)[8] * 1.0001), tmp_path, lambda task: task.round == 0)
    paths = run.paths.round(0, "ticket", 0)
    before = result(run, "ticket", 0)
    paths.result.unlink()
    lottery.run(run, [task for task in run.tasks if task.round == 0])
    after = result(run, "ticket", 0)
    assert {key: after[key] for key in ("hashes", "early_bird", "end", "clock")} == {
        key: before[key] for key in ("hashes", "early_bird", "end", "clock")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware": {"strategy": "fsdp2", "devices": 2, "accelerator": "cpu"}}, r"hardware.strategy='fsdp2'"),
        ({"run": {"patience": 1}}, r"run.patience"),
        ({"prune": {"early_bird": 0.1, "criterion": "snip"}}, r"prune.criterion='snip'"),
        ({"prune": {"early_bird": 1.5}}, r"prune.early_bird=1.5 is not valid; it must be in \[0, 1\)"),
    ],
)
def test_what_it_does_not_go_with_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        Experiment.at(tiny(**{"prune": {"early_bird": 0.1}, **changes}), tmp_path)


def test_rounds_one_epoch_apart_differ_by_less_and_less(masks: list[Mask]) -> None:
    """What the method rests on, in this small case."""
    steps = [first.distance(second) for first, second in pairwise(masks)]
    assert max(steps[-3:]) < min(steps[:3])

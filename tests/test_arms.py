"""Every arm: its mask, its weights, its steps, and that it differs from the ticket in nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    EPOCH,
    RESNET,
    Fit,
    T,
    dense,
    digest,
    final,
    play,
    result,
    spying,
    theta,
    ticket_mask,
    tiny,
    used_mask,
)

from lth_scale import settings
from lth_scale.arms import arms
from lth_scale.checkpoint import State
from lth_scale.data import Batches
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.tasks import Task

K = 7
ALL = tuple(name for name in arms if not (arms[name].foreign or arms[name].structured))
FRESH = ("reinit", "reinit-1", "random_reinit")
PERMUTED = ("random", "random_reinit")


class Played:
    """One experiment with every arm, three rounds, two replicates and two draws; and what each fit did."""

    def __init__(self, out: Path, **changes: Any) -> None:
        base: dict[str, Any] = {
            "run": {"arms": ALL, "seeds": (0, 1)},
            "reinit": {"draws": 2},
            "rewind": {"at": f"{K}it"},
            "data": {"augment": "crop_flip"},
            "train": {"duration": f"{T}it", "batch_size": 100, "eval_every": "24it", "lr": 0.05},
        }
        with spying() as spy:
            self.run = play(tiny(**(base | changes)), out)
        self.fits: dict[Task, Fit] = dict(zip(self.run.tasks, spy.fits, strict=True))

    def fit(self, arm: str, number: int, seed: int = 0) -> Fit:
        return self.fits[Task(number, seed, arm)]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("arms"))


def alive(run: Experiment, state: State) -> dict[str, torch.Tensor]:
    return {p.name: state.weights[p.name] for p in run.prunable}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], where: Mask) -> bool:
    return all(torch.equal(one[name][where[name]], other[name][where[name]]) for name in where)


# masks


@pytest.mark.parametrize("arm", ["reinit", "reinit-1", "sign"])
def test_arms_of_structure_train_the_tickets_mask(arm: str, played: Played) -> None:
    for number in (1, 2):
        assert used_mask(played.run, arm, number) == ticket_mask(played.run, number)
        assert not played.run.paths.round(0, arm, number).mask.exists(), "one writer per mask: the ticket"


@pytest.mark.parametrize("arm", PERMUTED)
def test_random_masks_are_permuted_within_each_layer(arm: str, played: Played) -> None:
    for seed in (0, 1):
        for number in (1, 2):
            mask, ticket = used_mask(played.run, arm, number, seed), ticket_mask(played.run, number, seed)
            assert mask.counts() == ticket.counts()
            assert all(not torch.equal(mask[name], ticket[name]) for name in mask)


@pytest.mark.parametrize("arm", PERMUTED)
def test_random_masks_are_drawn_anew_per_round_and_replicate(arm: str, played: Played) -> None:
    first, second = (used_mask(played.run, arm, number) for number in (1, 2))
    assert not second.within(first), "the second is no pruning of the first"
    other = used_mask(played.run, arm, 1, seed=1)
    assert all(not torch.equal(first[name], other[name]) for name in first)


def test_the_same_seed_draws_the_same(played: Played, tmp_path: Path) -> None:
    again = Played(tmp_path, run={"arms": ("ticket", "random", "random_reinit", "reinit"), "seeds": (0,)})
    for task in again.run.tasks:
        assert used_mask(again.run, task.arm, max(task.round, 1)) == used_mask(played.run, task.arm, max(task.round, 1))
        assert final(again.run, task.arm, task.round).differences(final(played.run, task.arm, task.round)) == []


@pytest.mark.parametrize("kept", [(), ("reinit", "random")], ids=["none", "two"])
def test_controls_never_touch_the_ticket(kept: tuple[str, ...], played: Played, tmp_path: Path) -> None:
    alone = Played(tmp_path, run={"arms": ("ticket", *kept), "seeds": (1,)})
    for number in range(3):
        assert final(alone.run, "ticket", number, 1).differences(final(played.run, "ticket", number, 1)) == []
        assert ticket_mask(alone.run, number + 1, 1) == ticket_mask(played.run, number + 1, 1)


# weights


@pytest.mark.parametrize("arm", FRESH)
def test_fresh_initialisations_are_drawn_per_round_and_replicate(arm: str, played: Played) -> None:
    run = played.run
    starts = [played.fit(arm, number, seed).start for number in (1, 2) for seed in (0, 1)]
    starts += [theta(run, 0, seed) for seed in (0, 1)]
    for i, one in enumerate(starts):
        assert not one.optimizer and one.step == 0
        for other in starts[:i]:
            assert all(not torch.equal(one.weights[p.name], other.weights[p.name]) for p in run.prunable)
    mask = used_mask(run, arm, 1)
    for name in mask:  # drawn from the model's own distribution, then masked
        values, ours = starts[0].weights[name][mask[name]], theta(run, 0).weights[name]
        assert values.std().item() == pytest.approx(ours.std().item(), rel=0.2)


def test_draws_of_reinit_differ_in_their_initialisation_alone(played: Played) -> None:
    one, two = played.fit("reinit", 1), played.fit("reinit-1", 1)
    assert all(not torch.equal(one.start.weights[p.name], two.start.weights[p.name]) for p in played.run.prunable)
    assert (one.inputs, one.rates) == (two.inputs, two.rates)
    folders = {path.name for path in (played.run.paths.root / "seed_0").iterdir()}
    assert {"reinit", "reinit-1"} <= folders and "reinit-2" not in folders and "random-1" not in folders
    assert result(played.run, "reinit-1", 1)["arm"] == "reinit-1"


def test_random_keeps_theta_k(played: Played) -> None:
    for number in (1, 2):
        mask = used_mask(played.run, "random", number)
        assert played.fit("random", number).start.differences(theta(played.run, K).masked(mask)) == []


def test_sign_keeps_the_signs_of_theta_k_alone(played: Played) -> None:
    for number in (1, 2):
        start, mask, at_k = played.fit("sign", number).start, ticket_mask(played.run, number), theta(played.run, K)
        for name in mask:
            spread = at_k.weights[name].std()
            expected = torch.where(at_k.weights[name] > 0, spread, -spread)
            assert torch.equal(start.weights[name][mask[name]], expected[mask[name]])
        biases = [name for name in start.weights if name not in mask]
        assert all(torch.equal(start.weights[name], at_k.weights[name]) for name in biases)
        assert not start.optimizer


def test_dense_from_k_is_trained_once_from_theta_k(played: Played) -> None:
    tasks = [task for task in played.run.tasks if task.arm == "dense_from_k"]
    assert tasks == [Task(1, 0, "dense_from_k"), Task(1, 1, "dense_from_k")]
    assert played.fit("dense_from_k", 1).start.differences(theta(played.run, K)) == []
    assert result(played.run, "dense_from_k", 1)["density"] == 1
    assert used_mask(played.run, "dense_from_k", 1).density == 1


def test_the_dense_round_is_shared(played: Played) -> None:
    assert [task.arm for task in played.run.tasks if task.round == 0] == ["ticket", "ticket"]


@pytest.mark.parametrize("arm", ALL)
def test_batchnorm_buffers_start_where_the_weights_do(arm: str, tmp_path: Path) -> None:
    short = {"duration": f"{K + 1}it", "eval_every": f"{K + 1}it"}
    made = Played(tmp_path, model=RESNET, train=short, run={"arms": ("ticket", arm)}, prune={"rounds": 1})
    source = made.run.initial(0) if arms[arm].draws or "reinit" in arm else theta(made.run, K)
    start = made.fit(arm, 1).start
    assert (
        start.buffers
        and replace(start, weights={}, optimizer={}).differences(replace(source, weights={}, optimizer={})) == []
    )


# clocks, order and augmentation


def expected_inputs(run: Experiment, seed: int, start: int, noise: int = 0) -> list[str]:
    batches = Batches(
        run.dataset,
        batch_size=100,
        micro_batch=0,
        start=start,
        stop=T,
        order=run.stream(seed, "order"),
        augment_seed=run.stream(seed, "augment"),
        augment=run.config.data.augment,
        noise=noise,
    )
    return [digest(*batch) for batch in batches]


def clock_of(arm: str, k: int) -> int:
    return 0 if arm in (*FRESH, "own") else k


def test_all_arms_of_a_replicate_see_the_same_images_at_the_same_steps(played: Played) -> None:
    for task, fit in played.fits.items():
        start = 0 if task.round == 0 else clock_of(task.arm, K)
        assert fit.inputs == expected_inputs(played.run, task.seed, start)
        assert len(fit.rates) == T - start == result(played.run, task.arm, task.round, task.seed)["clock"]["steps"]
        assert result(played.run, task.arm, task.round, task.seed)["clock"]["start"] == start
    assert expected_inputs(played.run, 0, 0) != expected_inputs(played.run, 1, 0)


@pytest.mark.parametrize(("at", "k"), [("0", 0), ("1ep", EPOCH)])
def test_clocks_at_other_rewind_points(at: str, k: int, tmp_path: Path) -> None:
    made = Played(tmp_path, rewind={"at": at}, run={"arms": ALL}, prune={"rounds": 1})
    for task in made.run.tasks:
        assert len(made.fits[task].rates) == T - (0 if task.round == 0 else clock_of(task.arm, k))


@pytest.mark.parametrize("recipe", ["continue", "weight_rewinding", "restart"])
@pytest.mark.parametrize("noise", ["same", "fresh"])
def test_reinit_changes_the_initialisation_alone(recipe: str, noise: str, tmp_path: Path) -> None:
    """From k = 0 a ticket and its reinit see the same images and rates, whatever the recipe says of the noise."""
    made = Played(
        tmp_path,
        rewind={"at": "0", "recipe": recipe},
        data={"augment": "crop_flip", "noise_per_round": noise},
        run={"arms": ("ticket", "reinit")},
    )
    for number in (1, 2):
        ticket, reinit = made.fit("ticket", number), made.fit("reinit", number)
        fresh = noise == "fresh" or recipe != "continue"
        assert ticket.inputs == reinit.inputs == expected_inputs(made.run, 0, 0, number if fresh else 0)
        assert ticket.rates == reinit.rates
        assert not same(alive(made.run, ticket.start), alive(made.run, reinit.start), ticket_mask(made.run, number))


# seeds

STREAMS = ("init", "order", "augment", "mask", "dropout")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return Played(tmp_path_factory.mktemp("plain"), run={"arms": ("ticket", "random")}, prune={"rounds": 1})


@pytest.mark.parametrize("stream", STREAMS)
def test_an_overridden_seed_moves_its_stream_alone(stream: str, plain: Played, tmp_path: Path) -> None:
    moved = Played(tmp_path, seeds={stream: 7}, run={"arms": ("ticket", "random")}, prune={"rounds": 1})
    one, other = result(plain.run, "ticket", 0)["streams"], result(moved.run, "ticket", 0)["streams"]
    assert [name for name in STREAMS if one[name] != other[name]] == [stream]
    initial = theta(plain.run, 0).differences(theta(moved.run, 0))
    assert bool(initial) == (stream == "init")
    inputs = [fit.inputs for fit in plain.fits.values()] == [fit.inputs for fit in moved.fits.values()]
    assert inputs == (stream not in ("order", "augment"))
    labels = sorted(plain.fit("ticket", 0).inputs) == sorted(moved.fit("ticket", 0).inputs)
    assert labels == inputs
    trained = final(plain.run, "ticket", 0).differences(final(moved.run, "ticket", 0)) == []
    assert trained == (stream in ("mask", "dropout"))  # no dropout in this model
    if stream == "mask":
        assert used_mask(plain.run, "random", 1) != used_mask(moved.run, "random", 1)
        assert ticket_mask(plain.run, 1) == ticket_mask(moved.run, 1)


def test_an_overridden_order_is_the_same_in_every_replicate(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"run": {"arms": ("ticket",), "seeds": (0, 1)}, "prune": {"rounds": 0}}
    made = Played(tmp_path, seeds={"order": 7, "augment": 7}, **changes)
    assert made.fit("ticket", 0, 0).inputs == made.fit("ticket", 0, 1).inputs
    assert made.fit("ticket", 0, 0).start.differences(made.fit("ticket", 0, 1).start)
    assert made.run.stream(0, "order") == made.run.stream(1, "order") != made.run.stream(0, "init")
    assert made.run.stream(0, "init") != made.run.stream(1, "init")


def test_replicates_differ_in_everything(played: Played) -> None:
    assert theta(played.run, 0, 0).differences(theta(played.run, 0, 1))
    assert not set(played.fit("ticket", 0, 0).inputs) & set(played.fit("ticket", 0, 1).inputs)
    assert ticket_mask(played.run, 1, 0) != ticket_mask(played.run, 1, 1)


def test_fresh_noise_changes_later_rounds_only(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"run": {"arms": ("ticket", "reinit", "random")}, "rewind": {"at": f"{K}it"}}
    made = Played(tmp_path, data={"augment": "crop_flip", "noise_per_round": "fresh"}, **changes)
    for task, fit in made.fits.items():
        start = 0 if task.round == 0 else clock_of(task.arm, K)
        assert fit.inputs == expected_inputs(made.run, task.seed, start, noise=task.round)


def test_a_replicate_does_not_depend_on_its_company(played: Played, tmp_path: Path) -> None:
    alone = play(replace(played.run.config, run=replace(played.run.config.run, seeds=(1,), arms=("ticket",))), tmp_path)
    assert final(alone, "ticket", 2, 1).differences(final(played.run, "ticket", 2, 1)) == []
    assert settings.digest(alone.config) == settings.digest(played.run.config)


def test_only_the_dense_round_stores_rewind_points(played: Played, tmp_path: Path) -> None:
    before = {path.name for path in played.run.paths.rewind(0, 0).parent.iterdir()}
    first = play(played.run.config, tmp_path, dense)
    assert (
        before
        == {path.name for path in first.paths.rewind(0, 0).parent.iterdir()}
        == {"step_00000000", "step_00000007"}
    )

"""Rewinding, end to end: theta_k, the dense pass, every recipe, and the proof that a round starts where it should."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    ONCE,
    POINTS,
    RESNET,
    K,
    Spy,
    T,
    dense,
    digest,
    dropout_net,
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

from lth_scale import lottery
from lth_scale.checkpoint import Source, State
from lth_scale.data import Batches
from lth_scale.experiment import Experiment
from lth_scale.rewinding import Recipe, clock, recipes
from lth_scale.shards import ReplicatedShards, Shards, capture, restore
from lth_scale.tasks import Task
from lth_scale.training import callbacks

assert dropout_net and spy  # fixtures

DROPS = {"schedule": "multistep", "milestones": ("12it", "20it"), "warmup": "3it"}
OPTIMIZERS = ("sgd", "nesterov", "adam", "adamw")


def twice(arms: tuple[str, ...] = ("ticket", "dense_from_k"), **more: Any) -> dict[str, Any]:
    """A dense round, and the same again from theta_k."""
    return {"run": {"arms": arms}, "prune": {"rounds": 1}, **more}


def repeat(run: Experiment) -> list[str]:
    """Names in which dense_from_k's end differs from the dense round's, bit for bit."""
    return final(run, "dense_from_k", 1).differences(final(run, "ticket", 0))


def not_ticket_1(task: Task) -> bool:
    return task.round == 0 or task.arm != "ticket"


@pytest.fixture
def recipe() -> Iterator[Callable[[Recipe], str]]:
    """Registers a recipe for one test."""
    name = "of_a_test"

    def register(entry: Recipe) -> str:
        recipes.register(name)(entry)
        return name

    yield register
    recipes._entries.pop(name, None)


# theta_k and the dense pass


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("at", POINTS)
def test_theta_k_is_the_state_after_exactly_k_steps(at: str, optimizer: str, tmp_path: Path) -> None:
    train, k = {"optimizer": optimizer, "lr": 0.01}, POINTS[at]
    run = play(tiny(train=train, rewind={"at": at}), tmp_path / "long", dense)
    if k == 0:
        short = run.initial(run.stream(0, "init"))
    else:  # its recipe keeps the optimizer state of the end
        alone = tiny(train=train | {"duration": f"{k}it"}, rewind={"recipe": "lr_rewinding"})
        short = final(play(alone, tmp_path / "short", dense), "ticket", 0)
    assert theta(run, k).step == k
    assert theta(run, k).differences(short) == []
    assert bool(short.optimizer) == (k > 0)


def test_one_step_more_or_less_is_another_theta(tmp_path: Path) -> None:
    run = play(tiny(rewind={"at": "7it", "keep": ("6it", "8it")}), tmp_path, dense)
    assert theta(run, 7).differences(theta(run, 6)) and theta(run, 7).differences(theta(run, 8))


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, RESNET], ids=["lenet", "resnet8"])
def test_the_dense_pass_runs_unbroken_whatever_is_stored_on_the_way(model: dict[str, Any], tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": model, "train": ONCE | {"optimizer": "adam", "lr": 0.01}}
    plain = play(tiny(**changes), tmp_path / "plain", dense)
    storing = play(tiny(**changes, rewind={"at": "7it", "keep": ("3it", "1ep", "15it")}), tmp_path / "storing", dense)
    assert final(storing, "ticket", 0).differences(final(plain, "ticket", 0)) == []
    assert rows(storing, "ticket", 0) == rows(plain, "ticket", 0)
    names = sorted(path.name for path in storing.paths.rewind(0, 0).parent.iterdir())
    assert names == [f"step_{step:08d}" for step in (0, 3, 7, 10, 15)]
    assert [theta(storing, step).step for step in (0, 3, 7, 10, 15)] == [0, 3, 7, 10, 15]
    assert [path.name for path in plain.paths.rewind(0, 0).parent.iterdir()] == ["step_00000000"]


# continue: with everything kept, a later round is the dense round again


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("at", POINTS)
def test_continue_with_a_full_mask_repeats_the_dense_round(at: str, optimizer: str, tmp_path: Path) -> None:
    train = {"optimizer": optimizer, "lr": 0.01, "weight_decay": 0.01, "decay": "weights", **DROPS}
    run = play(tiny(**twice(train=train, rewind={"at": at})), tmp_path, not_ticket_1)
    assert repeat(run) == []
    assert result(run, "dense_from_k", 1)["clock"]["steps"] == T - POINTS[at]
    later = [row for row in rows(run, "ticket", 0) if int(row.split(",")[0]) > POINTS[at]]
    validation = [row for row in later if "validation" in row]
    assert [row for row in rows(run, "dense_from_k", 1) if "validation" in row] == validation


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("at", POINTS)
def test_continue_repeats_batchnorm_and_augmentation(at: str, optimizer: str, tmp_path: Path) -> None:
    changes = twice(model=RESNET, data={"augment": "crop_flip"}, rewind={"at": at})
    run = play(tiny(**changes, train=ONCE | {"optimizer": optimizer, "lr": 0.01}), tmp_path, not_ticket_1)
    assert any("running_var" in name for name in final(run, "ticket", 0).buffers)
    assert repeat(run) == []


@pytest.mark.parametrize("micro_batch", [0, 25])
@pytest.mark.parametrize("at", POINTS)
def test_continue_repeats_dropout(at: str, micro_batch: int, dropout_net: str, tmp_path: Path) -> None:
    changes = twice(model={"name": dropout_net}, train={"micro_batch": micro_batch}, rewind={"at": at})
    assert repeat(play(tiny(**changes), tmp_path, not_ticket_1)) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fresh_optimizer_does_not_repeat_the_dense_round(
    optimizer: str, recipe: Callable[[Recipe], str], tmp_path: Path
) -> None:
    name = recipe(Recipe(optimizer="fresh"))
    changes = twice(train={"optimizer": optimizer, "lr": 0.01}, rewind={"at": "7it", "recipe": name})
    assert repeat(play(tiny(**changes), tmp_path, not_ticket_1))


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_fresh_noise_does_not_repeat_the_dense_round(augment: str, tmp_path: Path) -> None:
    changes = twice(data={"noise_per_round": "fresh", "augment": augment}, rewind={"at": "7it"})
    assert repeat(play(tiny(**changes), tmp_path, not_ticket_1))


@pytest.mark.parametrize("at", POINTS)
def test_openlth_breaks_the_dense_pass_too_so_that_both_agree(at: str, tmp_path: Path) -> None:
    broken = play(tiny(**twice(rewind={"at": at, "recipe": "openlth"})), tmp_path / "openlth", not_ticket_1)
    assert repeat(broken) == []
    unbroken = play(tiny(rewind={"at": at}), tmp_path / "continue", dense)
    same = final(broken, "ticket", 0).differences(final(unbroken, "ticket", 0)) == []
    assert same == (POINTS[at] == 0)
    assert theta(broken, POINTS[at]).differences(theta(unbroken, POINTS[at])) == []  # stored before the break


# every recipe

LITERATURE = {  # weights and buffers, optimizer, schedule, data
    "continue": ("k", "k", "k", "k"),
    "openlth": ("k", "fresh", "k", "k"),
    "weight_rewinding": ("k", "k", "k", "fresh"),
    "lr_rewinding": ("T", "T", "k", "fresh"),
    "fine_tuning": ("T", "T", "last", "fresh"),
    "restart": ("k", "fresh", "0", "fresh"),
}


def test_the_presets_are_the_literatures() -> None:
    told = {n: (recipes[n].weights, recipes[n].optimizer, recipes[n].schedule, recipes[n].data) for n in recipes}
    assert told == LITERATURE
    assert all(recipes[name].buffers == recipes[name].weights for name in recipes)
    assert [name for name in recipes if recipes[name].dense_break] == ["openlth"]


def expected_start(run: Experiment, number: int) -> State:
    """What the run's recipe says, from the files."""
    at_k, at_end = theta(run, K), final(run, "ticket", number - 1)
    source = {"k": at_k, "T": at_end, "fresh": State({})}
    told = run.recipe
    step = 0 if told.schedule == "0" else K
    state = State(
        source[told.weights].weights, source[told.buffers].buffers, source[told.optimizer].optimizer, step
    )  # fmt: skip
    return state.masked(ticket_mask(run, number)).whole()


def expected_inputs(run: Experiment, start: int, noise: int) -> list[str]:
    config = run.config
    batches = Batches(
        run.dataset,
        batch_size=config.train.batch_size,
        micro_batch=config.train.micro_batch,
        start=start,
        stop=T,
        order=run.stream(0, "order"),
        augment_seed=run.stream(0, "augment"),
        augment=config.data.augment,
        noise=noise,
    )
    return [digest(*batch) for batch in batches]


def rate(step: int) -> float:
    """DROPS at lr 0.05, by hand."""
    return 0.05 * (step + 1) / 3 if step < 3 else 0.05 * 0.1 ** ((step >= 12) + (step >= 20))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(recipes))
def test_a_round_really_starts_and_trains_as_its_recipe_says(name: str, spy: Spy, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model": RESNET, "data": {"augment": "crop_flip"}, "train": ONCE | DROPS}
    run = play(tiny(**changes, rewind={"at": f"{K}it", "recipe": name}), tmp_path)
    told = recipes[name]
    assert [fit.start.step for fit in spy.fits] == [0, *[0 if told.schedule == "0" else K] * 2]
    for number, fit in enumerate(spy.fits):
        first = fit.start.step
        if number:
            assert fit.start.differences(expected_start(run, number)) == []
            assert bool(fit.start.optimizer) == (told.optimizer != "fresh")
        places = [T - 1] * (T - K) if number and told.schedule == "last" else range(first, T)
        assert [rates[0] for rates in fit.rates] == pytest.approx([rate(place) for place in places], rel=1e-12)
        assert fit.inputs == expected_inputs(run, first, number if told.data == "fresh" else 0)
        recorded = result(run, "ticket", number)
        assert recorded["clock"]["steps"] == len(fit.rates) == T - first
        assert recorded["recipe"]["name"] == name
        assert {key: recorded["recipe"][key] for key in ("weights", "optimizer", "schedule")} == {
            "weights": told.weights, "optimizer": told.optimizer, "schedule": told.schedule
        }  # fmt: skip


@pytest.mark.parametrize("name", list(recipes))
def test_clocks(name: str) -> None:
    made = clock(recipes[name], K, T, number=3, fresh_noise=False)
    assert (made.start, made.stop) == ((0, T) if name == "restart" else (K, T))
    assert made.noise == (0 if recipes[name].data == "k" else 3)
    assert made.schedule == {"restart": 0, "fine_tuning": None}.get(name, K)
    assert clock(recipes[name], K, T, number=3, fresh_noise=True).noise == 3


# the proof


def flip(tensor: torch.Tensor) -> None:
    """Change the lowest bit of the first element."""
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    tensor.detach().view(-1).view(kind)[0] ^= 1


def weight(model: torch.nn.Module, optimizers: Any) -> torch.Tensor:
    return next(model.parameters())


def buffer(model: torch.nn.Module, optimizers: Any) -> torch.Tensor:
    return next(model.buffers())


def counter(model: torch.nn.Module, optimizers: Any) -> torch.Tensor:
    return next(b for n, b in model.named_buffers() if n.endswith("num_batches_tracked"))


def moment(model: torch.nn.Module, optimizers: Any) -> torch.Tensor:
    found: torch.Tensor = next(iter(optimizers[0].state.values()))["exp_avg_sq"]
    return found


def age(model: torch.nn.Module, optimizers: Any) -> torch.Tensor:
    found: torch.Tensor = next(iter(optimizers[0].state.values()))["step"]
    return found


@pytest.mark.parametrize("part", [weight, buffer, counter, moment, age])
def test_a_start_that_is_off_by_one_bit_is_refused(
    part: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"model": RESNET, "train": ONCE | {"optimizer": "adam"}, "rewind": {"at": "7it"}}
    run = play(tiny(**changes), tmp_path, dense)

    def inexact(shards: Shards, source: Source) -> None:
        restore(shards, source)
        flip(part(shards.module, shards.optimizers))

    first = [task for task in run.tasks if task.round == 1]
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "restore", inexact)
        with pytest.raises(RuntimeError, match="does not start from its source"):
            lottery.run(run, first)
    assert not first[0].done(run.paths)
    lottery.run(run, first)  # and without the fault the same round goes through
    assert first[0].done(run.paths)


def test_an_optimizer_state_left_over_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = play(tiny(), tmp_path, dense)

    def leaving(shards: Shards, source: Source) -> None:
        restore(shards, source)
        first = next(shards.module.parameters())
        shards.optimizers[0].state[first] = {"momentum_buffer": torch.zeros_like(first)}

    monkeypatch.setattr(callbacks, "restore", leaving)
    with pytest.raises(RuntimeError, match="optimizer/"):
        lottery.run(run, [task for task in run.tasks if task.round == 1])


def test_a_rewind_that_aliases_its_source_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The field's signature bug: training writes into theta_0 itself, so that the next round starts somewhere else."""
    run = established(tiny(), tmp_path)
    kept: list[State] = []

    def aliasing(shards: Shards, source: Source) -> None:
        restore(shards, source)
        state = source.whole()
        if not kept:
            kept.append(state)
        for name, parameter in shards.module.named_parameters():
            mask = (state.weights[name] != 0).float() if "weight" in name else 1.0
            parameter.data = kept[0].weights[name].mul_(mask)  # "theta_0 times the mask", in place

    monkeypatch.setattr(callbacks, "restore", aliasing)
    lottery.run(run, run.tasks[:1])
    with pytest.raises(RuntimeError, match="does not start from its source"):
        lottery.run(run, run.tasks[1:2])


def test_a_captured_state_is_not_reached_by_later_training(tmp_path: Path) -> None:
    model = established(tiny(), tmp_path).model(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    shards = ReplicatedShards(model, [optimizer])
    held = capture(shards, 1)
    before = held.digest()
    optimizer.step()
    assert held.digest() == before and capture(shards, 1).differences(held)
    restore(shards, held)
    optimizer.step()
    assert held.digest() == before


@pytest.mark.parametrize("name", ["continue", "lr_rewinding"])
def test_the_recorded_hashes_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    run = play(tiny(rewind={"at": "7it", "recipe": name}), tmp_path)
    for number in (1, 2):
        recorded = result(run, "ticket", number)
        source = f"theta_T of round {number - 1}" if name == "lr_rewinding" else f"theta_{K}"
        assert recorded["source"] == {
            "name": source,
            "sha256": expected_start(run, number).digest(),
            "theta_k": theta(run, K).digest(),
            "verdict": "exact",
        }
    start = run.initial(run.stream(0, "init"))
    assert result(run, "ticket", 0)["source"]["sha256"] == start.digest() == theta(run, 0).digest()


def test_every_bit_counts_in_a_comparison() -> None:
    state = State({"w": torch.tensor([0.0, 1.0])}, {"b": torch.tensor([1])}, {"w": {"m": torch.zeros(2)}}, 3)
    minus = replace(state, weights={"w": torch.tensor([-0.0, 1.0])})
    assert state.differences(minus) == ["weights/w"]
    nan = replace(state, weights={"w": torch.tensor([math.nan, 1.0])})
    assert nan.differences(nan) == []
    assert state.differences(replace(state, optimizer={})) == ["optimizer/w/m"]

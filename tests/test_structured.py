"""Channel tickets as an experiment: whole channels go, round after round, and the controls keep the structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import T, established, final, play, result, tiny

from lth_scale import costs, pruning, starting
from lth_scale.arms import arms
from lth_scale.checkpoint import State
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.models import channels, redraw
from lth_scale.tasks import Task

SCOPES = [name for name in pruning.scopes if pruning.scopes[name].channels]
ARMS = ("ticket", "reinit", "random", "small", "small_flops")


def config(scope: str, **changes: Any) -> Config:
    fields: dict[str, Any] = {
        "prune": {"scope": scope, "rate": 0.4, "rounds": 2},
        "run": {"seeds": (0,), "arms": ARMS},
        "rewind": {"at": "7it"},
    }
    return tiny(**(fields | changes))


@pytest.fixture(scope="module", params=SCOPES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return play(config(request.param), tmp_path_factory.mktemp("run") / "run")


def mask(run: Experiment, arm: str, number: int) -> Mask:
    path = run.paths.round(0, arm, number).mask
    return Mask.load(path if path.exists() else run.paths.round(0, "ticket", number).mask)


def test_each_round_removes_the_fewest_whole_channels_that_reach_its_target(run: Experiment) -> None:
    earlier = channels.everything(run.channels)
    for planned in run.plan[1:]:
        found = mask(run, "ticket", planned.round)
        kept = channels.kept_channels(run.channels, found)  # raises if it were not made of whole ones
        assert found.kept <= planned.kept
        assert all(bool((now <= before).all()) for now, before in zip(kept, earlier, strict=True))
        gone = [i for i, (now, before) in enumerate(zip(kept, earlier, strict=True)) if not torch.equal(now, before)]
        back = []  # with any one channel of the round back it would keep too much
        for group in gone:
            one = (earlier[group] & ~kept[group]).nonzero()[0]
            more = [alive.clone() for alive in kept]
            more[group][one] = True
            back.append(sum(channels.counts(run.channels, more, run.prunable).values()))
        assert max(back) > planned.kept
        earlier = kept


def test_the_weakest_channels_go(run: Experiment) -> None:
    trained = final(run, "ticket", 0)
    kept = channels.kept_channels(run.channels, mask(run, "ticket", 1))
    means = [trained.weights[f"fc{n}.weight"].double().abs().mean(1) for n in (1, 2)]
    if run.config.prune.scope == "channel":
        dead = torch.cat([m[~k] for m, k in zip(means, kept, strict=True)])
        alive = torch.cat([m[k] for m, k in zip(means, kept, strict=True)])
        assert dead.max() < alive.min()
    else:
        shares = [float(k.double().mean()) for k in kept]
        assert max(shares) - min(shares) <= 0.11  # all groups alike, to a channel of ten
        assert all(m[~k].max() < m[k].min() for m, k in zip(means, kept, strict=True) if not k.all())


@torch.no_grad()
def test_the_ticket_computes_what_the_network_without_its_channels_does(run: Experiment) -> None:
    found, trained = mask(run, "ticket", 2), final(run, "ticket", 2)
    network = run.model(0).double()
    network.load_state_dict({name: tensor.double() for name, tensor in (trained.weights | trained.buffers).items()})
    small = channels.narrowed(network, run.channels, channels.kept_channels(run.channels, found))
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in network.parameters())
    images = torch.rand(16, *run.description.shape, dtype=torch.float64)
    torch.testing.assert_close(small(images), network(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", [1, 2])
def test_random_masks_are_of_as_many_channels(number: int, run: Experiment) -> None:
    ticket, other = mask(run, "ticket", number), mask(run, "random", number)
    mine, theirs = (channels.kept_channels(run.channels, m) for m in (ticket, other))
    assert [int(k.sum()) for k in mine] == [int(k.sum()) for k in theirs] and ticket != other
    assert ticket.counts() == other.counts()


@pytest.mark.parametrize("arm", ["small", "small_flops"])
def test_the_small_network_is_drawn_for_its_own_sizes(arm: str, run: Experiment) -> None:
    start = starting.start(run, Task(2, 0, arm))
    state, kept = start.state.whole(), channels.kept_channels(run.channels, start.mask)
    assert start.mask == mask(run, "ticket", 2)
    assert start.state.masked(start.mask).digest() == result(run, arm, 2)["source"]["sha256"]
    weight = state.weights["fc2.weight"][kept[1]][:, kept[0]]
    wide = run.model(0).fc2.weight.detach()  # kaiming: variance 2 / inputs
    inputs = int(kept[0].sum())
    assert inputs < wide.shape[1]
    assert float(weight.std()) == pytest.approx((2 / inputs) ** 0.5, rel=0.35)
    assert float(wide.std()) == pytest.approx((2 / wide.shape[1]) ** 0.5, rel=0.35)


def test_equal_epochs_and_equal_flops(run: Experiment) -> None:
    dense = result(run, "ticket", 0)["flops"]["dense"]
    small, more = result(run, "small", 2), result(run, "small_flops", 2)
    assert (small["clock"]["start"], small["clock"]["end"]) == (0, T)
    assert more["clock"]["end"] > T and more["flops"]["sparse"] == pytest.approx(dense, rel=0.02)
    assert small["flops"]["sparse"] < 0.6 * dense


def test_a_plan_knows_about_what_equal_flops_cost(tmp_path: Path) -> None:
    run = Experiment.at(config("channel"), tmp_path)
    assert costs.clock_of(run, Task(2, 0, "small_flops")).stop > costs.clock_of(run, Task(2, 0, "small")).stop == T


def test_redrawing_a_network_of_unchanged_size_is_building_it(tmp_path: Path) -> None:
    run = established(config("channel"), tmp_path)
    network, again = run.model(3), run.model(4)
    redraw(again, run.config.model.init, 3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_a_residual_network_with_batchnorm(tmp_path: Path) -> None:
    made = config(
        "channel",
        model={"name": "resnet8", "width": 4},
        prune={"scope": "channel", "rate": 0.3, "rounds": 1, "min_per_layer": 2},
        train={"duration": "4it", "batch_size": 20, "eval_every": "4it", "lr": 0.05},
        rewind={"at": "0"},
        run={"seeds": (0,), "arms": ("ticket", "small")},
    )
    run = play(made, tmp_path)
    kept = channels.kept_channels(run.channels, mask(run, "ticket", 1))
    assert all(int(alive.sum()) >= 2 for alive in kept)
    state: State = final(run, "ticket", 1)
    network = run.model(0)
    network.load_state_dict({**state.weights, **state.buffers})
    network = network.double().eval()
    small = channels.narrowed(network, run.channels, kept)
    images = torch.rand(8, *run.description.shape, dtype=torch.float64)
    torch.testing.assert_close(small(images), network(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prune": {"scope": "channel", "rates": {"output": 0}}},
            r"prune.rates.output=0 is not valid with prune.scope",
        ),
        ({"prune": {"scope": "channel", "criterion": "grasp"}}, r"prune.criterion='grasp' .* choose from: magnitude"),
        (
            {"prune": {"scope": "channel", "rounds": 30}},
            r"cannot leave .* of round 30: with 1 in each of the model's 2",
        ),
        ({"model": {"name": "vit_4x4", "init": "own"}}, r"channel tickets need"),
        ({"transfer": {"layers": "body"}}, r"transfer.layers='body' is not valid with prune.scope='channel'"),
        ({"prune": {"rounds": 1}}, r"run.arms: small, small_flops .* choose from: channel, channel_uniform"),
    ],
)
def test_what_channels_cannot_do_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "rates" in changes.get("prune", {}):
        from lth_scale.config import Rates

        changes = {"prune": {**changes["prune"], "rates": Rates(output=0)}}
    with pytest.raises(UserError, match=message):
        Experiment.at(config("channel", **changes), tmp_path)


def test_the_arms_of_structure_are_known() -> None:
    assert [name for name in arms if arms[name].structured] == ["small", "small_flops"]


def test_pruning_itself_refuses_to_guess_channels() -> None:
    with pytest.raises(AssertionError, match=r"lth_scale\.structured"):
        pruning.next_masks([], config("channel").prune, [])

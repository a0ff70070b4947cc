"""Rounds without their dead units: a smaller network, the same trajectory to rounding, and whole states on disk."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from many_ranks import on_ranks
from proofs import assert_same, ended, fork, proof
from test_channels import CLASSES, SHAPE, drawn, make
from test_channels import _narrow_vggs as _narrow_vggs
from test_resume import interrupt
from tiny_runs import RESNET, Spy, captured, dense, final, play, rows, ticket_mask, tiny
from tiny_runs import dropout_net as dropout_net
from tiny_runs import spy as spy
from torch import nn
from torch.nn import functional

from lth_scale import checkpoint, lottery, settings, structured
from lth_scale.checkpoint import State
from lth_scale.config import Config, Hardware, Train
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.models import channels, macs, models, prunable
from lth_scale.models.channels import Group
from lth_scale.models.narrowing import Cut
from lth_scale.paths import RunPaths
from lth_scale.shards import ReplicatedShards, differences, parts, restore
from lth_scale.training.compact import Compact
from lth_scale.training.masking import Masking
from lth_scale.training.module import make_optimizer

STEPS = 4
TRAIN = Train(lr=0.05, momentum=0.9, weight_decay=0.05)
STRATEGIES = get_args(get_type_hints(Hardware)["strategy"])
Kept = Sequence[torch.Tensor]


def isolated(groups: Sequence[Group], shapes: dict[str, tuple[int, ...]], density: float = 0.9) -> Mask:
    """Random weights, and of the first group unit 1 without any, 2 without outputs and 3 without inputs."""
    generator = torch.Generator().manual_seed(5)
    masks = {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}
    for axes, units in ((groups[0].producers, (1, 3)), (groups[0].consumers, (1, 2))):
        for axis in axes:
            for unit in units:
                masks[axis.name].movedim(axis.dim, 0)[unit * axis.width : (unit + 1) * axis.width] = False
    return Mask(masks)


def dead(groups: Sequence[Group], kept: Kept, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Name -> which entries belong to units that are left out."""
    found = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for group, alive in zip(groups, kept, strict=True):
        for axis in group.axes:
            found[axis.name].movedim(axis.dim, 0)[~axis.spread(alive)] = True
    return found


# --- the same trajectory, in float64 ----------------------------------------------------------------------------------


def start_of(model: nn.Module) -> State:
    """The model's values, and a momentum that is nowhere 0."""
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = 0.1 * parameter.detach() + 0.01
    return captured(model, [optimizer], 0)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, *SHAPE, generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (8,), generator=generator)


def fit(model: nn.Module, groups: Sequence[Group], mask: Mask, folder: Path) -> tuple[list[float], State, nn.Module]:
    """Losses, the state that is stored in the end, and the network that was trained."""
    start = start_of(model).masked(mask)
    view = Compact(groups, mask, start)
    network = view.network(copy.deepcopy(model)).train()
    optimizer = make_optimizer(network, TRAIN)
    shards = ReplicatedShards(network, [optimizer])
    restore(shards, view.narrow(start))
    assert differences(shards, view.narrow(start)) == []
    masking, losses = Masking(shards, view.mask), []
    masking.install()
    for step in range(STEPS):
        images, labels = batch(step)
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        masking.gradients()
        optimizer.step()
        losses.append(loss.item())
    assert masking.revived() == {}
    checkpoint.save(folder, view.widened(parts(shards)), STEPS)
    return losses, checkpoint.load_state(folder), network


def by_channel(model: nn.Module, groups: Sequence[Group]) -> Mask:
    return channels.channel_mask(groups, drawn(groups), prunable(model))


def unstructured(model: nn.Module, groups: Sequence[Group]) -> Mask:
    return isolated(groups, {tensor.name: tensor.shape for tensor in prunable(model)})


QUICK = [("lenet_300_100", unstructured), ("resnet8", by_channel)]
LONG = [(name, how) for name in models for how in (by_channel, unstructured)]
CASES = [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in LONG if case not in QUICK)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1].__name__}")
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Group], Mask]:
    model = make(request.param[0])
    groups = channels.groups(model, SHAPE, strict=False)
    return model, groups, request.param[1](model, groups)


def test_the_trajectory_is_that_of_the_whole_network(case: tuple[nn.Module, list[Group], Mask], tmp_path: Path) -> None:
    model, groups, mask = case
    start, kept = start_of(model).masked(mask).whole(), structured.connected(groups, mask)
    losses, whole, _ = fit(model, (), mask, tmp_path / "whole")
    found, compact, network = fit(model, groups, mask, tmp_path / "compact")
    assert found == pytest.approx(losses, rel=1e-9)
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in model.parameters())
    assert sum(macs(network, SHAPE).values()) < sum(macs(model, SHAPE).values())
    assert compact.entries() == whole.entries() == start.entries(), "stored in the original names and shapes"
    gone = dead(groups, kept, {k.partition("/")[2]: e.shape for k, e in start.entries().items() if "optim" not in k})
    for key, tensor in compact.flat().items():
        out = gone[key.split("/")[1]]
        assert torch.equal(tensor[out], start.flat()[key][out]), "dead units keep what they had"
        torch.testing.assert_close(tensor[~out], whole.flat()[key][~out], rtol=1e-7, atol=1e-9)
    assert not torch.equal(compact.flat()["weights/" + next(iter(mask))], start.flat()["weights/" + next(iter(mask))])


def without(role: str) -> Callable[[Sequence[Group], Mask], list[torch.Tensor]]:
    """Counts only the weights into units, or only those out of them, as surviving ones."""
    right = structured.connected

    def connected(groups: Sequence[Group], mask: Mask) -> list[torch.Tensor]:
        pruned = {axis.name: torch.zeros_like(mask[axis.name]) for g in groups for axis in getattr(g, role)}
        return right(groups, Mask({**mask, **pruned}))

    return connected


@pytest.mark.parametrize("role", ["producers", "consumers"])
def test_removing_units_that_have_a_weight_leads_elsewhere(
    role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a unit without outputs has weights that decay and are ranked, one without inputs is a constant."""
    model = make("lenet_300_100")
    groups = channels.groups(model, SHAPE)[:1]
    mask = unstructured(model, groups)
    with torch.no_grad():
        model.fc1.bias[3] = 0.5  # of the unit without inputs
    losses, whole, _ = fit(model, (), mask, tmp_path / "whole")
    monkeypatch.setattr(structured, "connected", without(role))
    found, compact, _ = fit(model, groups, mask, tmp_path / "compact")
    name = groups[0].producers[0].name
    if role == "producers":  # unit 2 is gone as nothing reads it
        assert found == pytest.approx(losses, rel=1e-9)
        assert not torch.allclose(compact.weights[name][2], whole.weights[name][2], rtol=1e-3)
    else:
        assert found != pytest.approx(losses, rel=1e-4)


def test_only_units_without_any_weight_go() -> None:
    model = make("lenet_300_100")
    groups = channels.groups(model, SHAPE)
    mask = unstructured(model, groups)
    assert [(~alive).nonzero().flatten().tolist() for alive in structured.connected(groups, mask)] == [[1], []]
    nothing = Mask({name: torch.zeros_like(kept) for name, kept in mask.items()})
    assert [int(alive.sum()) for alive in structured.connected(groups, nothing)] == [1, 1]
    fresh = Mask({name: kept for name, kept in nothing.items() if not name.startswith("output")})
    assert [int(alive.sum()) for alive in structured.connected(groups, fresh)] == [1, 12], "nothing prunes its readers"


def test_ranges_that_tile_what_is_left_tile_the_whole() -> None:
    cut = Cut((4, 3, 5), (torch.tensor([1, 3]), torch.tensor([0, 1, 2]), torch.tensor([0, 2, 3])))
    values = torch.arange(60).view(4, 3, 5)
    assert cut.shape == (2, 3, 3) and torch.equal(cut.of(values).flatten(), cut.flat(0, 18))
    for edges in ([0, 18], [0, 1, 7, 18], [0, 9, 10, 17, 18]):
        pairs = list(pairwise(edges))
        around = [cut.around(*pair) for pair in pairs]
        assert around[0][0] == 0 and around[-1][1] == 60
        assert all(before[1] == after[0] for before, after in pairwise(around))
        for (first, last), pair in zip(around, pairs, strict=True):
            assert first <= int(cut.flat(*pair)[0]) and int(cut.flat(*pair)[-1]) < last


# --- whole runs -------------------------------------------------------------------------------------------------------

SHORT = {"duration": "10it", "eval_every": "5it", "checkpoint_every": "4it", "lr": 0.05, "weight_decay": 1e-2}
KINDS: dict[str, dict[str, Any]] = {
    "lenet": {"train": {**SHORT, "batch_size": 60, "optimizer": "adam", "lr": 2e-3, "ema": 0.9}},
    "lr_rewinding": {"train": {**SHORT, "batch_size": 60}, "rewind": {"at": "3it", "recipe": "lr_rewinding"}},
    "resnet": {"train": {**SHORT, "batch_size": 20}, "model": {**RESNET, "hidden": ()}},
    "unstructured": {"train": {**SHORT, "batch_size": 60}, "prune": {"rounds": 1}},
}


def config(kind: str, compact: bool) -> Config:
    fields = {"rewind": {"at": "3it"}, "prune": {"scope": "channel", "rate": 0.4, "rounds": 2}, **KINDS[kind]}
    return tiny(**fields | {"train": {**fields["train"], "compact": compact}})


def prepared(kind: str, compact: bool, out: Path) -> Experiment:
    """A run whose dense round is done, with a mask of ours where that is wanted."""
    run = play(config(kind, compact), out, dense)
    if kind == "unstructured":
        shapes = {tensor.name: tensor.shape for tensor in run.prunable}
        isolated(run.channels, shapes).save(run.paths.round(0, "ticket", 1).mask)
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_one_without_compaction(kind: str, spy: Spy, tmp_path: Path) -> None:
    whole, compact = (prepared(kind, on, tmp_path / str(on)) for on in (False, True))
    assert final(whole, "ticket", 0).differences(final(compact, "ticket", 0)) == [], "the dense round has no dead units"
    for run in (whole, compact):
        lottery.run(run, run.tasks)
    last = len(whole.plan) - 1
    for number in range(1, last + 1):
        mine, theirs = final(compact, "ticket", number), final(whole, "ticket", number)
        mask = ticket_mask(whole, number)
        assert ticket_mask(compact, number) == mask and ticket_mask(compact, number + 1) == ticket_mask(
            whole, number + 1
        )
        assert mine.entries() == theirs.entries()
        for name, kept in mask.items():
            torch.testing.assert_close(mine.weights[name], theirs.weights[name], rtol=1e-3, atol=2e-5)
            assert int(mine.weights[name][~kept].view(torch.int32).count_nonzero()) == 0
        losses = [[float(row.split(",")[2]) for row in rows(run, "ticket", number)] for run in (whole, compact)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    small, full = spy.fits[-1].model, spy.fits[-1 - last].model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in full.parameters())
    if kind != "unstructured":
        assert {n: p.numel() for n, p in small.named_parameters() if n in mask} == {
            n: kept for n, (kept, _) in mask.counts().items()
        }, "a channel ticket is trained as the network that it is"


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_goes_on_to_the_same_bits(kind: str, spy: Spy, tmp_path: Path) -> None:
    reference = prepared(kind, True, tmp_path / "whole")
    run = prepared(kind, True, tmp_path / "halves")
    lottery.run(reference, reference.tasks)
    interrupt(spy, run, 3, 6)
    begun = len(spy.fits)
    lottery.run(run, run.tasks)
    assert spy.fits[begun].start.step == 8
    assert_same(run.paths.root, proof(reference.paths.root))


@pytest.mark.kill
def test_a_round_that_is_killed_goes_on_to_the_same_bits(spy: Spy, tmp_path: Path) -> None:
    reference = proof(play(config("resnet", True), tmp_path / "whole").paths.root)
    run = prepared("resnet", True, tmp_path / "killed")

    def work() -> None:
        spy.after = lambda fit, _: os.kill(os.getpid(), signal.SIGKILL) if len(fit.rates) == 6 else None
        lottery.run(run, run.tasks)

    assert ended(fork(work)) == -signal.SIGKILL
    assert checkpoint.candidates(run.paths.round(0, "ticket", 1).checkpoints)[0].name.startswith("step_00000008")
    lottery.run(run, run.tasks)
    assert_same(run.paths.root, reference)


def test_dropout_is_refused(dropout_net: str, tmp_path: Path) -> None:
    made = tiny(model={"name": dropout_net, "init": "own"}, train={**SHORT, "compact": True})
    with pytest.raises(
        UserError, match=r"train.compact=True is not valid with dropout_net: its dropout .* choose false"
    ):
        Experiment.at(made, tmp_path)
    Experiment.at(replace(made, train=replace(made.train, compact=False)), tmp_path)


# --- several processes ------------------------------------------------------------------------------------------------

COMMON = (
    *("digits_lenet", "--run.seeds=0", "--run.arms=[ticket]", "--prune.rounds=2", "--hardware.accelerator=cpu"),
    *("--train.batch_size=60", "--train.checkpoint_every=10it", "--prune.rates.output=null", "--prune.scope=channel"),
    *("--train.weight_decay=0.01", "--train.compact=true", "--prune.rate=0.4", "--train.duration=16it"),
    *("--train.eval_every=8it", "--rewind.at=5it", "--model.hidden=[21,10]", "--train.optimizer=adam"),
    *("--train.lr=0.002",),
)


def words(strategy: str) -> list[str]:
    return [*COMMON, f"--hardware.strategy={strategy}", "--hardware.devices=2"]


def alone(out: Path) -> Experiment:
    run = Experiment.at(settings.parse([*COMMON, "--train.micro_batch=30"]), out).established()
    lottery.run(run, run.tasks)
    return run


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return proof(alone(tmp_path_factory.mktemp("one") / "run").paths.root)


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_the_small_network_to_the_same_bits(
    strategy: str, one: dict[str, Any], tmp_path: Path
) -> None:
    """Two ranks are one process; and what they were stopped in, one process ends in the same bits."""
    stop = {"stop": 10, "round": "round_02/checkpoint"}
    asked: dict[str, Any] = {"words": words(strategy)}
    on_ranks(2, [{**asked, "out": str(tmp_path / "two")}, {**asked, "out": str(tmp_path / "halves"), **stop}])
    assert_same(tmp_path / "two", one, strategy)
    assert not RunPaths(tmp_path / "halves").round(0, "ticket", 2).result.exists()
    alone(tmp_path / "halves")
    assert_same(tmp_path / "halves", one, strategy)

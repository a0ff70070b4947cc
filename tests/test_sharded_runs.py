"""One algorithm under five strategies: real processes, real shards, the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from many_ranks import on_ranks
from proofs import assert_same, proof
from tiny_runs import final, ticket_mask

from lth_scale import checkpoint, lottery, settings
from lth_scale.checkpoint import Stored
from lth_scale.config import Hardware
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.paths import RunPaths

pytestmark = pytest.mark.distributed

STRATEGIES = get_args(get_type_hints(Hardware)["strategy"])
COMMON = (
    *("digits_lenet", "--run.seeds=0", "--run.arms=[ticket]", "--prune.rounds=2", "--hardware.accelerator=cpu"),
    *("--train.batch_size=60", "--train.checkpoint_every=10it", "--prune.rates.output=null", "--prune.scope=global"),
    *("--train.decay=weights", "--train.weight_decay=0.01"),
)
LENET = ("--model.hidden=[21,10]", "--train.duration=16it", "--train.eval_every=8it", "--rewind.at=5it")
RESNET = (
    *("--model.name=resnet8", "--model.width=4", "--train.duration=6it", "--train.eval_every=3it", "--rewind.at=2it"),
    *("--data.augment=crop_flip",),
)
NETS = {
    "lenet adam": (*LENET, "--train.optimizer=adam", "--train.lr=0.002", "--run.arms=[ticket,reinit]"),
    "resnet nesterov": (*RESNET, "--train.optimizer=nesterov", "--train.lr=0.05"),
    "lenet adamw": (*LENET, "--train.optimizer=adamw", "--train.lr=0.002", "--train.ema=0.9", "--prune.weights=ema"),
}


def words(net: str, strategy: str, ranks: int, *more: str) -> list[str]:
    return [*COMMON, *NETS[net], f"--hardware.strategy={strategy}", f"--hardware.devices={ranks}", *more]


def alone(net: str, out: Path, micro_batch: int, *more: str) -> Experiment:
    """One process that accumulates the micro-batches that the ranks would take."""
    asked = [*COMMON, *NETS[net], f"--train.micro_batch={micro_batch}", *more]
    run = Experiment.at(settings.parse(asked), out).established()
    lottery.run(run, run.tasks)
    return run


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every strategy and net on two ranks, in one launch; and one process."""
    root = tmp_path_factory.mktemp("two")
    jobs = [
        {"words": words(net, s, 2), "out": str(root / net / s), "losses": str(root / f"{net} {s}.json")}
        for net in NETS
        for s in STRATEGIES
    ]
    on_ranks(2, jobs)
    for net in NETS:
        alone(net, root / net / "one", 30)
    return root


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_are_one_process_bit_for_bit(net: str, strategy: str, two: Path) -> None:
    """Curves, weights, optimizer state, masks, zero proofs, rewind points; the control is another order of the data.

    One process has other running statistics, of both micro-batches in turn: there the strategies are compared.
    """
    expected = proof(two / net / ("ddp" if net.startswith("resnet") else "one"))
    assert len([name for name in expected if name.endswith("final")]) == (5 if net == "lenet adam" else 3)
    assert_same(two / net / strategy, expected, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weights_are_those_of_one_process_with_batchnorm_too(strategy: str, two: Path) -> None:
    for number in (0, 1, 2):
        ours, theirs = (Stored.open(final_folder(two / "resnet nesterov" / s, number)) for s in (strategy, "one"))
        assert ours.digest("weights") == theirs.digest("weights")
        assert ours.digest("buffers") != theirs.digest("buffers")


def test_the_proof_sees_another_order(two: Path, tmp_path: Path) -> None:
    alone("lenet adam", tmp_path / "other", 30, "--seeds.order=7")
    expected = proof(two / "lenet adam" / "one")
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "other", expected)


@pytest.mark.parametrize("net", NETS)
def test_training_losses_are_equal(net: str, two: Path) -> None:
    every = [json.loads((two / f"{net} {s}.json").read_text()) for s in STRATEGIES]
    assert len(every[0]) == 2 and len(every[0][0]) >= 14
    assert all(losses == every[0] for losses in every)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_rank_writes_more_than_its_shard(net: str, strategy: str, two: Path) -> None:
    found = final_folder(two / net / strategy, 2)
    manifest = checkpoint.load_manifest(found)
    sizes = [file["bytes"] for file in manifest["files"]]
    assert manifest["world_size"] == 2 and len(sizes) == 2
    assert max(sizes) < 0.62 * sum(sizes)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pruned_weights_and_their_state_are_plus_zero(net: str, strategy: str, two: Path) -> None:
    run = Experiment.at(settings.parse(words(net, strategy, 2)), two / net / strategy)
    for number in (1, 2):
        state, mask = Stored.open(final_folder(two / net / strategy, number)).whole(), ticket_mask(run, number)
        for name, kept in mask.items():
            beside = [t for t in state.optimizer.get(name, {}).values() if t.shape == kept.shape]
            for tensor in [state.weights[name], *beside]:
                assert int(tensor[~kept].view(torch.int32).count_nonzero()) == 0
            assert bool(state.weights[name][kept].count_nonzero())


def final_folder(root: Path, number: int) -> Path:
    return checkpoint.candidates(RunPaths(root).round(0, "ticket", number).checkpoints)[0]


@pytest.fixture(scope="module", params=[3, 4])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Every strategy twice on three and on four ranks, the second time interrupted."""
    ranks, root = request.param, tmp_path_factory.mktemp(f"ranks_{request.param}")
    short = ("--prune.rounds=1", "--run.arms=[ticket]", "--train.duration=21it", "--rewind.at=16it")
    short += ("--train.eval_every=21it", "--train.checkpoint_every=10it")
    jobs: list[dict[str, Any]] = []
    for s in STRATEGIES:
        asked = words("lenet adam", s, ranks, *short)
        jobs.append({"words": asked, "out": str(root / s / "1"), "losses": str(root / f"{s} 1.json")})
        jobs.append({"words": asked, "out": str(root / s / "2"), "stop": 10, "round": "round_00/checkpoint"})
        jobs.append({"words": asked, "out": str(root / s / "2")})
    on_ranks(ranks, jobs)
    return ranks, root


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_ranks_repeat_themselves(strategy: str, many: tuple[int, Path]) -> None:
    """Also where they go on: frameworks that choose an order of adding on their way must come to the same one."""
    _, root = many
    assert len(list((root / strategy / "2").glob("seed_0/ticket/round_00/attempts/*"))) == 2
    assert_same(root / strategy / "2", proof(root / strategy / "1"), strategy)


def test_more_ranks_agree_on_the_first_losses(many: tuple[int, Path], two: Path) -> None:
    """The mean over ranks of the first 20 steps; frameworks add the gradients of three ranks in different orders."""
    ranks, root = many
    every = [json.loads((root / f"{s} 1.json").read_text()) for s in STRATEGIES]
    assert all(len(losses) == ranks for losses in every)
    means = [[sum(step) / ranks for step in zip(*losses, strict=True)][:20] for losses in every]
    two_ranks = json.loads((two / "lenet adam ddp.json").read_text())
    means.append([sum(step) / 2 for step in zip(*two_ranks, strict=True)][:16])
    for mean in means:
        assert mean == pytest.approx(means[0][: len(mean)], rel=1e-4)


def test_masks_of_stored_weights_are_equal_at_every_rank_count(two: Path, tmp_path: Path) -> None:
    """The states of all strategies, stored in other ranges, at 1 to 4 ranks; and over the layers one by one."""
    net = "resnet nesterov"
    folders = [final_folder(two / net / s, 1) for s in ("one", *STRATEGIES)]
    under = RunPaths(two / net / "one").round(0, "ticket", 1).mask
    expected = RunPaths(two / net / "one").round(0, "ticket", 2).mask.read_bytes()
    by_layer = set()
    for ranks in (1, 2, 3, 4):
        jobs: list[dict[str, Any]] = []
        for scope in ("global", "layer"):
            into = tmp_path / f"{ranks} {scope}"
            into.mkdir()
            asked = words(net, "ddp", ranks, f"--prune.scope={scope}")
            chosen = [str(folder) for folder in folders]
            held = {"under": str(under)} if scope == "global" else {}  # it is a mask of that scope's counts
            jobs.append({"words": asked, "out": str(into), "masks": chosen, "into": str(into), **held})
        on_ranks(ranks, jobs)
        found = [(tmp_path / f"{ranks} global" / f"{n}.safetensors").read_bytes() for n in range(len(folders))]
        assert all(mask == expected for mask in found)
        by_layer |= {(tmp_path / f"{ranks} layer" / f"{n}.safetensors").read_bytes() for n in range(len(folders))}
    assert len(by_layer) == 1 and expected not in by_layer


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_goes_on_elsewhere(strategy: str, two: Path, tmp_path: Path) -> None:
    """Stopped inside round 1 under a strategy on two ranks, it goes on alone, and ends in the same bits."""
    net = "lenet adam"
    job = {"words": words(net, strategy, 2), "out": str(tmp_path / "run"), "stop": 10, "round": "round_01/checkpoint"}
    on_ranks(2, [job])
    assert not RunPaths(tmp_path / "run").round(0, "ticket", 1).result.exists()
    alone(net, tmp_path / "run", 30)
    assert_same(tmp_path / "run", proof(two / net / "one"), strategy)


def test_round_0_on_four_ranks_the_rest_on_one_and_on_three(tmp_path: Path) -> None:
    """Every hand-over restores the exact state: the proof of each start reads it from disk, or the round refuses."""
    net, root = "lenet adam", tmp_path / "run"
    chain = [(4, "deepspeed_stage_3", 10, "round_00"), (3, "fsdp2", 10, "round_01"), (4, "deepspeed_stage_1", 0, "")]
    for ranks, strategy, stop, number in chain:
        asked = words(net, strategy, ranks, "--run.arms=[ticket]", "--train.micro_batch=5")
        on_ranks(ranks, [{"words": asked, "out": str(root), "stop": stop, "round": f"{number}/checkpoint"}])
    run = Experiment.at(settings.parse(words(net, "ddp", 1, "--run.arms=[ticket]", "--train.micro_batch=5")), root)
    assert all(task.done(run.paths) for task in run.tasks)
    masks = [Mask.load(run.paths.round(0, "ticket", number).mask) for number in (1, 2, 3)]
    assert masks[2].within(masks[1]) and masks[1].within(masks[0])
    assert [mask.kept for mask in masks] == [row.kept for row in run.plan[1:]] + [masks[2].kept]
    worlds = [checkpoint.load_manifest(final_folder(root, number))["world_size"] for number in (0, 1, 2)]
    assert worlds == [3, 4, 4]
    assert final(run, "ticket", 2).step == 16

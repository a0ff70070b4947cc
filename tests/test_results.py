"""What a round records, against the definitions, computed here once more by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    RESNET,
    T,
    dense,
    final,
    play,
    result,
    rows,
    theta,
    ticket_mask,
    tiny,
    used_mask,
)
from torch.nn import functional

from lth_scale import checkpoint, lottery, results, settings
from lth_scale.checkpoint import State
from lth_scale.config import Rates
from lth_scale.data import Split
from lth_scale.data.serving import spread
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.masks import Mask
from lth_scale.rewinding import Clock
from lth_scale.tasks import Task
from lth_scale.training.evaluation import Curves, Measure, evaluate, read_curves


def columns(lines: list[str], split: str) -> list[tuple[int, float]]:
    return [(int(f[0]), float(f[2])) for f in (line.split(",") for line in lines) if f[1] == split]


# densities


def test_lenet_has_the_papers_densities(tmp_path: Path) -> None:
    """266,200 weights at 20, 20 and 10 % a round (Frankle & Carbin 2019, figure 1), by really pruning them."""
    run = Experiment.at(settings.parse(["mnist_lenet", "--prune.rounds=15"]), tmp_path)
    assert sum(p.numel for p in run.prunable) == 266_200
    generator = torch.Generator().manual_seed(0)
    state = State({p.name: torch.randn(p.shape, generator=generator) for p in run.prunable})
    mask = Mask.ones({p.name: p.shape for p in run.prunable})
    percent = {}
    for number in range(1, 16):
        mask = lottery.next_mask(run, Task(number - 1, 0, "ticket"), mask, state)
        assert mask.kept == run.plan[number].kept
        percent[number] = round(100 * mask.density, 2)
    assert {number: percent[number] for number in (3, 7, 9, 15)} == {3: 51.28, 7: 21.07, 9: 13.52, 15: 3.58}


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    changes: dict[str, Any] = {"train": {"eval_every": "4it"}, "rewind": {"at": "7it"}}
    return play(tiny(**changes, run={"arms": ("ticket", "reinit", "random")}), tmp_path_factory.mktemp("lenet"))


def test_densities_count_weights_and_all_parameters(lenet: Experiment) -> None:
    weights, biases = 64 * 20 + 20 * 10 + 10 * 10, 20 + 10 + 10
    for number in (1, 2):
        recorded, mask = result(lenet, "ticket", number), ticket_mask(lenet, number)
        assert recorded["density"] == mask.kept / weights
        assert recorded["density_all"] == (mask.kept + biases) / (weights + biases)
        assert {n: (t["kept"], t["numel"]) for n, t in recorded["tensors"].items()} == mask.counts()
        assert [t["kind"] for t in recorded["tensors"].values()] == ["fc", "fc", "output"]
    assert result(lenet, "ticket", 0)["density"] == result(lenet, "ticket", 0)["density_all"] == 1


def test_flops_are_those_of_a_hand(lenet: Experiment) -> None:
    """A linear layer of n weights: n multiply-adds forward, 2 n backward, 2 FLOPs each, per sample."""
    for arm, number, steps in (("ticket", 0, T), ("ticket", 2, T - 7), ("reinit", 2, T), ("random", 1, T - 7)):
        recorded = result(lenet, arm, number)
        kept = used_mask(lenet, arm, number).kept if number else 1580
        assert recorded["clock"]["samples"] == 100 * steps
        assert recorded["flops"] == {"dense": 6 * 1580 * 100 * steps, "sparse": 6 * kept * 100 * steps}


def test_seconds_bytes_and_hashes_are_there(lenet: Experiment) -> None:
    for path in lenet.paths.results():
        recorded = json.loads(path.read_text())
        seconds = recorded["seconds"]
        assert all(seconds[kind] > 0 for kind in ("train", "evaluation", "checkpoint", "device"))
        assert seconds["device"] == pytest.approx(sum(seconds[k] for k in ("train", "evaluation", "checkpoint")))
        where, state = checkpoint.latest(path.parent / "checkpoint") or (None, None)
        assert where is not None and state is not None
        assert recorded["bytes"]["stored"] == (where / "rank_00000.safetensors").stat().st_size
        assert recorded["hashes"]["weights"] == state.digest("weights")
        arm, number = recorded["arm"], recorded["round"]
        mask = used_mask(lenet, arm, number) if number else Mask.ones({p.name: p.shape for p in lenet.prunable})
        assert recorded["hashes"]["mask"] == mask.sha256()
        assert recorded["zeros"] == {"pruned": mask.numel - mask.kept, "nonzero": 0}


def test_keys_say_density_and_never_its_opposite(lenet: Experiment) -> None:
    assert "sparsity" not in lenet.paths.results()[0].read_text()


# measures


def test_figures_of_the_end_are_those_of_the_final_weights(lenet: Experiment) -> None:
    """Every image of validation and test, and all 1,000 training images, evaluated here in one piece."""
    for arm, number in (("ticket", 0), ("ticket", 2), ("random", 1)):
        model = lenet.model(0).eval()
        state = final(lenet, arm, number)
        model.load_state_dict(state.weights | state.buffers)
        recorded = result(lenet, arm, number)["end"]
        assert recorded["step"] == T
        for name, size in (("train", 1000), ("validation", 200), ("test", 597)):
            split = getattr(lenet.dataset, name)
            with torch.no_grad():
                logits = model(lenet.dataset.normalise(split.images))
            assert recorded[name]["samples"] == size == len(split)
            assert recorded[name]["accuracy"] == (logits.argmax(1) == split.labels).double().mean().item()
            loss = functional.cross_entropy(logits.double(), split.labels).item()
            assert recorded[name]["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("lr", [0.05, 1.5])
@pytest.mark.parametrize("arm", ["ticket", "reinit"])
def test_early_stopping_is_the_first_minimum_of_validation_loss(arm: str, lr: float, tmp_path: Path) -> None:
    train = {"eval_every": "2it", "lr": lr, "optimizer": "adam"}
    run = play(tiny(train=train, rewind={"at": "7it"}, run={"arms": ("ticket", arm)}, prune={"rounds": 1}), tmp_path)
    for number in (0, 1):
        lines = rows(run, arm if number else "ticket", number)
        recorded = result(run, arm if number else "ticket", number)
        validation = columns(lines, "validation")
        best = min(loss for _, loss in validation)
        first = next(step for step, loss in validation if loss == best)
        stop = recorded["early_stop"]
        assert stop["step"] == first
        assert stop["steps_trained"] == first - recorded["clock"]["start"]
        assert stop["reached"] == (first != T)
        for split in ("train", "validation", "test"):
            assert (first, stop[split]["loss"]) in columns(lines, split)
        assert recorded["thirds"] is None


def curves(*losses: float) -> Curves:
    """Validation losses at steps 1, 2, ...; test and train at each."""
    made = Curves(None)
    for step, loss in enumerate(losses, start=1):
        for split in ("validation", "test", "train"):
            made.add(Measure(step, split, loss if split == "validation" else 1.0, 0.5, 10))
    return made


@pytest.mark.parametrize(
    ("losses", "step", "reached"),
    [
        ((3.0, 1.0, 2.0, 1.0), 2, True),
        ((3.0, 2.0, 1.5, 1.0), 4, False),
        ((1.0, 1.0, 1.0, 1.0), 1, True),
        ((math.nan, 2.0, 3.0, math.nan), 2, True),
        ((2.0, math.nan, math.inf, 1.0), 4, False),
        ((math.nan,) * 4, 4, False),
    ],
    ids=["first of two", "in the last", "all equal", "finite only", "the last", "none"],
)
def test_a_minimum_in_the_last_evaluation_is_not_reached(losses: tuple[float, ...], step: int, reached: bool) -> None:
    stop = results._measures(curves(*losses), Clock(0, 4, 0, 0), drops=False)["early_stop"]
    assert (stop["step"], stop["reached"]) == (step, reached)


@pytest.mark.parametrize(("schedule", "drops"), [("constant", False), ("multistep", True), ("cosine", True)])
def test_thirds_are_recorded_where_the_schedule_drops(schedule: str, drops: bool, tmp_path: Path) -> None:
    train = {"schedule": schedule, "milestones": ("12it",), "eval_every": "7it"}
    run = play(tiny(train=train, rewind={"at": "1ep"}, prune={"rounds": 1}), tmp_path)
    for number, expected in ((0, [8, 16, 24]), (1, [16, 24])):  # the first third lies before k
        recorded = result(run, "ticket", number)
        if not drops:
            assert recorded["thirds"] is None
            continue
        assert [third["step"] for third in recorded["thirds"]] == expected
        lines = rows(run, "ticket", number)
        for third in recorded["thirds"]:
            for split in ("validation", "test"):
                assert (third["step"], third[split]["loss"]) in columns(lines, split)


def test_evaluation_takes_each_sample_once_and_leaves_the_model_as_it_was(lenet: Experiment) -> None:
    model = lenet.model(0).train()
    few = Split(lenet.dataset.test.images[:101], lenet.dataset.test.labels[:101])
    loss, accuracy, samples = evaluate(model, replace(lenet.dataset, test=few), "test", torch.device("cpu"))
    assert samples == 101 and (accuracy * 101) == round(accuracy * 101) and loss > 0
    assert model.training


def test_a_long_train_split_is_measured_on_evenly_spread_images(lenet: Experiment) -> None:
    split = lenet.dataset.train
    few = spread(split, 100)
    assert len(few) == 100 and spread(split, 5000) is split
    assert torch.equal(few.images[0], split.images[0]) and torch.equal(few.images[-1], split.images[-1])


def test_a_torn_last_line_of_the_curves_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,split,loss,accuracy,samples\n4,validation,0.5,0.25,200\n8,validation,0.4,0.5,200\n12,valid")
    assert read_curves(path, 100) == [Measure(4, "validation", 0.5, 0.25, 200), Measure(8, "validation", 0.4, 0.5, 200)]
    assert read_curves(path, 4) == [Measure(4, "validation", 0.5, 0.25, 200)]


# flags


def test_a_healthy_round_has_no_flags(lenet: Experiment) -> None:
    assert all(json.loads(path.read_text())["flags"] == [] for path in lenet.paths.results())


def test_an_emptied_tensor_is_flagged(tmp_path: Path) -> None:
    prune = {"scope": "layer", "rate": 0.2, "rates": Rates(output=0.999), "rounds": 1}
    run = play(tiny(prune=prune), tmp_path)
    recorded = result(run, "ticket", 1)
    assert recorded["tensors"]["output.weight"]["kept"] == 0
    assert recorded["flags"] == ["empty: output.weight", "disconnected"]
    assert recorded["flops"]["sparse"] == 6 * ticket_mask(run, 1).kept * 100 * T
    floor = play(tiny(prune=prune | {"min_per_layer": 5}), tmp_path / "floor")
    assert result(floor, "ticket", 1)["tensors"]["output.weight"]["kept"] == 5


def test_a_network_without_a_path_is_flagged(lenet: Experiment) -> None:
    """One weight a layer, none of which meet."""
    mask = {p.name: torch.zeros(p.shape, dtype=torch.bool) for p in lenet.prunable}
    mask["fc1.weight"][0, 0] = mask["fc2.weight"][0, 1] = mask["output.weight"][0, 0] = True
    assert results.flags(lenet, Mask(mask), curves(1.0)) == ["disconnected"]
    mask["fc2.weight"][0, 0] = True
    assert results.flags(lenet, Mask(mask), curves(1.0)) == []


def test_a_dense_round_that_diverges_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lower train\.lr"):
        play(tiny(train={"lr": 1e30}), tmp_path, dense)


@pytest.mark.parametrize("arm", ["dense_from_k", "reinit", "random", "sign"])
def test_a_control_that_diverges_is_recorded_and_flagged(arm: str, tmp_path: Path) -> None:
    """Its ticket was trained at a sane rate, so that the round is there to be compared with."""
    config = tiny(run={"arms": ("ticket", arm)}, prune={"rounds": 1})
    sane = play(config, tmp_path, dense)
    wild = Experiment(replace(sane.config, train=replace(sane.config.train, lr=1e30)), sane.paths)
    lottery.run(wild, [task for task in wild.tasks if task.arm == arm])
    recorded = json.loads(wild.paths.round(0, arm, 1).result.read_text(), parse_constant=refuse)
    assert recorded["flags"] == ["diverged"]
    assert recorded["end"]["validation"]["loss"] is None
    assert recorded["zeros"]["nonzero"] == 0


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_batchnorm_scales_are_counted_among_all_parameters(tmp_path: Path) -> None:
    run = play(tiny(model=RESNET, prune={"rounds": 1}, train={"duration": "2it", "eval_every": "2it"}), tmp_path)
    recorded, mask = result(run, "ticket", 1), ticket_mask(run, 1)
    every = sum(tensor.numel() for tensor in theta(run, 0).weights.values())
    assert recorded["density_all"] == (every - (mask.numel - mask.kept)) / every

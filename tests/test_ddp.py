"""Two processes of the command line against one that accumulates the same two micro-batches: the same bits."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from commands import flip
from failing_ranks import Run
from proofs import children, gone, kill
from tiny_runs import final, result, rows, theta, ticket_mask
from torch.nn import functional

from lth_scale import cli, lottery, settings
from lth_scale.data import Batches, SplitName
from lth_scale.experiment import Experiment
from lth_scale.paths import RunPaths
from lth_scale.training.evaluation import evaluate
from lth_scale.training.module import make_optimizer

pytestmark = pytest.mark.distributed

COMMON = (
    *("digits_lenet", "--run.seeds=0", "--run.arms=[ticket,random]", "--prune.rounds=1", "--hardware.accelerator=cpu"),
    *("--train.batch_size=100", "--train.checkpoint_every=5it"),
)
LENET = ("--model.hidden=[20,10]", "--train.duration=24it", "--train.eval_every=8it", "--rewind.at=7it")
RESNET = (
    *("--model.name=resnet8", "--model.width=4", "--train.duration=6it", "--train.eval_every=3it", "--rewind.at=2it"),
    *("--data.augment=crop_flip", "--train.optimizer=sgd", "--train.lr=0.05", "--prune.rates.output=null"),
    *("--prune.scope=global",),
)


def two_processes(out: Path, *words: str) -> Experiment:
    """``lth run`` on two devices."""
    run = Run([*COMMON, *words], out)
    assert run.wait() == 0, run.told
    return Experiment.at(settings.parse([*COMMON, *words, "--hardware.devices=2"]), out)


def one_process(out: Path, *words: str) -> Experiment:
    run = Experiment.at(settings.parse([*COMMON, *words, "--train.micro_batch=50"]), out).established()
    lottery.run(run, run.tasks)
    return run


@pytest.fixture(scope="module")
def lenets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Experiment]:
    folder = tmp_path_factory.mktemp("lenet")
    return two_processes(folder / "two", *LENET), one_process(folder / "one", *LENET)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return two_processes(tmp_path_factory.mktemp("resnet") / "two", *RESNET)


def assert_same(two: Experiment, one: Experiment) -> None:
    assert [path.relative_to(two.paths.root) for path in two.paths.results()] == [
        path.relative_to(one.paths.root) for path in one.paths.results()
    ]
    assert len(two.paths.results()) == len(one.tasks)
    for task in one.tasks:
        assert final(two, task.arm, task.round).differences(final(one, task.arm, task.round)) == []
        ours, theirs = (result(run, task.arm, task.round) for run in (two, one))
        for key in ("density", "tensors", "source", "recipe", "clock", "flops", "hashes", "zeros", "flags"):
            assert ours[key] == theirs[key]
        if task.arm == "ticket":
            assert ticket_mask(two, task.round + 1) == ticket_mask(one, task.round + 1)


def test_masks_and_weights_are_those_of_one_process(lenets: tuple[Experiment, Experiment]) -> None:
    two, one = lenets
    assert_same(two, one)
    for step in (0, 7):
        assert theta(two, step).differences(theta(one, step)) == []
    assert settings.load(two.paths.config).train.micro_batch == 50


def test_figures_are_those_of_one_process(lenets: tuple[Experiment, Experiment]) -> None:
    """Bit for bit: the batches are the same, and are summed in the same order."""
    two, one = lenets
    for task in one.tasks:
        assert rows(two, task.arm, task.round) == rows(one, task.arm, task.round)


def test_one_process_writes_and_both_are_charged(lenets: tuple[Experiment, Experiment]) -> None:
    two, _ = lenets
    folder = two.paths.round(0, "ticket", 0)
    assert [path.name for path in folder.claims.iterdir()] == ["000001"]
    assert [path.name for path in (folder.folder / "attempts").iterdir()] == ["000001"]
    lines = rows(two, "ticket", 0)
    assert len(lines) == len({tuple(line.split(",")[:2]) for line in lines}), "no measure twice"
    seconds = result(two, "ticket", 0)["seconds"]
    total = sum(seconds[kind] for kind in ("train", "evaluation", "checkpoint"))
    assert seconds["device"] == pytest.approx(2 * total)


def test_an_interrupted_run_goes_on_in_step(lenets: tuple[Experiment, Experiment]) -> None:
    """Two rounds that only lack their done markers, and a further one: no rank may run ahead of the other."""
    two, one = lenets
    for arm, number in (("ticket", 0), ("ticket", 1), ("random", 1)):
        two.paths.round(0, arm, number).result.unlink()
    more = (*LENET, "--prune.rounds=2")
    two = two_processes(two.paths.root, *more)
    one = one_process(one.paths.root, *more)
    assert_same(two, one)
    assert [result(two, "ticket", number)["attempt"] for number in (0, 1, 2)] == [2, 2, 1]


def test_batchnorm_buffers_are_averaged_after_every_step(resnet: Experiment) -> None:
    """The dense round, by hand: each rank's buffers follow its own images within a step, and meet at its end."""
    run = resnet
    initial = run.initial(run.stream(0, "init"))
    model = run.model(0)
    model.load_state_dict(initial.weights | initial.buffers)
    optimizer = make_optimizer(model, run.config.train)
    streams = [
        iter(
            Batches(
                run.dataset,
                batch_size=100,
                micro_batch=50,
                start=0,
                stop=6,
                order=run.stream(0, "order"),
                augment_seed=run.stream(0, "augment"),
                augment="crop_flip",
                noise=0,
                rank=rank,
                world=2,
            )
        )
        for rank in (0, 1)
    ]
    buffers = [{name: b.clone() for name, b in model.named_buffers()} for _ in streams]
    for step in range(1, 7):
        optimizer.zero_grad()
        for held, stream in zip(buffers, streams, strict=True):
            images, labels = next(stream)
            model.load_state_dict(held, strict=False)
            (functional.cross_entropy(model(images), labels) / 2).backward()
            held |= {name: b.clone() for name, b in model.named_buffers()}
        optimizer.step()
        apart = any(not torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])
        assert apart, "the ranks saw other images"
        for name, one in buffers[0].items():
            mean = (one + buffers[1][name]) / 2 if one.is_floating_point() else one
            buffers[0][name], buffers[1][name] = mean.clone(), mean.clone()
        if step in (2, 6):
            stored = theta(run, 2) if step == 2 else final(run, "ticket", 0)
            assert all(torch.equal(stored.weights[name], p) for name, p in model.named_parameters())
            assert all(torch.equal(stored.buffers[name], buffers[0][name]) for name in buffers[0])


@pytest.mark.parametrize(("arm", "number"), [("ticket", 0), ("ticket", 1), ("random", 1)])
def test_evaluation_counts_every_sample_once(arm: str, number: int, resnet: Experiment) -> None:
    """597 test images do not divide by two; the figures are those of the stored state, evaluated in one process."""
    model, state = resnet.model(0), final(resnet, arm, number)
    model.load_state_dict(state.weights | state.buffers)
    end = result(resnet, arm, number)["end"]
    sizes: tuple[tuple[SplitName, int], ...] = (("train", 1000), ("validation", 200), ("test", 597))
    for name, samples in sizes:
        loss, accuracy, count = evaluate(model, resnet.dataset, name, torch.device("cpu"))
        assert end[name]["samples"] == count == samples
        assert end[name]["accuracy"] == accuracy
        assert end[name]["loss"] == pytest.approx(loss, rel=1e-6)


def test_pruned_weights_stay_zero_on_two_processes(resnet: Experiment) -> None:
    for path in resnet.paths.results():
        assert json.loads(path.read_text())["zeros"]["nonzero"] == 0


def test_a_world_that_does_not_divide_the_batch_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *COMMON, "--hardware.devices=3", "--out", str(tmp_path / "run")]) == 2
    told = capfd.readouterr().err
    assert "train.batch_size" in told and "3 devices" in told and len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_mistake_met_by_two_ranks_is_told_once(resnet: Experiment, tmp_path: Path) -> None:
    """Both meet the damaged mask; without the launcher's care each would tell it, and the launcher a traceback."""
    root = tmp_path / "run"
    shutil.copytree(resnet.paths.root, root)
    paths = RunPaths(root).round(0, "ticket", 1)
    flip(paths.mask)
    paths.result.unlink()
    run = Run([*COMMON, *RESNET], root)
    assert run.wait() == 2, run.told
    assert run.told == f"lth: {paths.mask} {run.told.partition(f'{paths.mask} ')[2]}"
    assert "is damaged" in run.told and len(run.told.splitlines()) == 1


def test_ranks_end_with_their_launcher(tmp_path: Path) -> None:
    root = tmp_path / "run"
    run = Run([*COMMON, *LENET, "--train.duration=100000it"], root)
    while not list(root.glob("seed_0/rewind/step_*/MANIFEST.json")):
        assert run.launcher.poll() is None
        time.sleep(0.05)
    ranks = children(run.launcher.pid)
    kill(run.launcher.pid)
    assert run.launcher.wait() == -signal.SIGKILL
    assert len(ranks) == 2
    while not all(map(gone, ranks)):
        time.sleep(0.02)  # the test's own limit ends this if they live on

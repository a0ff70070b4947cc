"""The same command continues what is missing, and nobody can tell from the bits that it was interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from proofs import assert_same, proof
from tiny_runs import RESNET, Fit, Spy, established, play, tiny
from tiny_runs import spy as spy
from torch.optim import Optimizer

from lth_scale import checkpoint, lottery, settings
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.files import read_json
from lth_scale.paths import RunPaths
from lth_scale.settings import binding, digest, fields_of

T, K, EVERY = 10, 3, 4  # steps: the end, the rewind point, between checkpoints
SHORT = {"duration": f"{T}it", "batch_size": 100, "eval_every": "3it", "checkpoint_every": f"{EVERY}it"}
KINDS: dict[str, dict[str, Any]] = {
    "momentum": {"train": {**SHORT, "lr": 0.05, "weight_decay": 1e-3}},
    "adam": {"train": {**SHORT, "lr": 1e-3, "optimizer": "adam"}},
    "batchnorm": {"train": {**SHORT, "batch_size": 20, "lr": 0.05}, "model": {**RESNET, "hidden": ()}},
    "multistep": {"train": {**SHORT, "schedule": "multistep", "milestones": ("4it", "7it"), "warmup": "2it"}},
    "lr_rewinding": {"train": SHORT, "rewind": {"at": f"{K}it", "recipe": "lr_rewinding"}},
    "openlth": {"train": SHORT, "rewind": {"at": f"{EVERY}it", "recipe": "openlth"}},
    "fresh noise": {"train": SHORT, "data": {"augment": "crop_flip", "noise_per_round": "fresh"}},
}


class Interrupted(Exception):
    """Stands for anything that ends a process between two steps."""


def config(kind: str = "momentum", **changes: dict[str, Any]) -> Config:
    return tiny(**{"rewind": {"at": f"{K}it"}, "prune": {"rounds": 1}, **KINDS[kind], **changes})


def stop(first: int, steps: int) -> Callable[[Fit, Optimizer], None]:
    """Interrupt the fit that starts at step ``first``, after so many steps."""

    def after(fit: Fit, _: Optimizer) -> None:
        if fit.start.step == first and len(fit.rates) == steps:
            raise Interrupted

    return after


def interrupt(spy: Spy, run: Experiment, first: int, steps: int) -> None:
    spy.after = stop(first, steps)
    with pytest.raises(Interrupted):
        lottery.run(run, run.tasks)
    spy.after = lambda fit, optimizer: None


# Round 0 starts at step 0, round 1 at k; both are interrupted after a step that lies between checkpoints.
@pytest.mark.parametrize(("number", "at", "saved"), [(0, 6, EVERY), (1, 9, 2 * EVERY)], ids=["dense", "masked"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_goes_on_from_its_checkpoint_to_the_same_bits(
    kind: str, number: int, at: int, saved: int, spy: Spy, tmp_path: Path
) -> None:
    made = config(kind)
    reference = proof(play(made, tmp_path / "whole").paths.root)
    run = established(made, tmp_path / "halves")
    first = run.k if number else 0
    interrupt(spy, run, first, at - first)
    resumed = len(spy.fits)
    lottery.run(run, run.tasks)
    assert spy.fits[resumed].start.step == saved  # not begun anew
    assert_same(run.paths.root, reference)


def test_a_round_interrupted_again_and_again(spy: Spy, tmp_path: Path) -> None:
    made = config()
    reference = proof(play(made, tmp_path / "whole").paths.root)
    run = established(made, tmp_path / "pieces")
    interrupt(spy, run, 0, 2)
    interrupt(spy, run, 0, 6)  # nothing was saved yet: from the start again
    interrupt(spy, run, EVERY, 1)
    interrupt(spy, run, EVERY, 5)
    interrupt(spy, run, 2 * EVERY, 1)
    lottery.run(run, run.tasks)
    assert spy.fits[-2].start.step == 2 * EVERY
    assert read_json(run.paths.round(0, "ticket", 0).result)["attempt"] == 6
    assert_same(run.paths.root, reference)


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_without_the_optimizer_state_the_bits_differ(kind: str, spy: Spy, tmp_path: Path) -> None:
    """The comparison above can fail: a checkpoint that forgets something leads elsewhere."""
    reference = proof(play(config(kind), tmp_path / "whole").paths.root)
    run = established(config(kind), tmp_path / "halves")
    interrupt(spy, run, 0, 6)
    where, state = checkpoint.latest(run.paths.round(0, "ticket", 0).checkpoints) or pytest.fail("no checkpoint")
    extra = checkpoint.load_manifest(where)["extra"]
    shutil.rmtree(where)
    checkpoint.save_state(where, replace(state.whole(), optimizer={}), extra)
    lottery.run(run, run.tasks)
    with pytest.raises(AssertionError, match="uninterrupted it is"):
        assert_same(run.paths.root, reference)


def dense(root: Path) -> Path:
    return RunPaths(root).round(0, "ticket", 0).folder


def ticket(root: Path) -> Path:
    return RunPaths(root).round(0, "ticket", 1).folder


def remove(*paths: Path) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


LOSSES: dict[str, Callable[[Path], None]] = {
    "result of the dense round": lambda root: remove(dense(root) / "result.json"),
    "result of a control": lambda root: remove(RunPaths(root).round(0, "random", 1).result),
    "result of the last ticket": lambda root: remove(RunPaths(root).round(0, "ticket", 2).result),
    "mask": lambda root: remove(ticket(root) / "mask.safetensors"),
    "round": lambda root: remove(ticket(root)),
    "dense round": lambda root: remove(dense(root)),
    "replicate": lambda root: remove(root / "seed_0"),
    "dense checkpoint and result": lambda root: remove(dense(root) / "checkpoint", dense(root) / "result.json"),
    "rewind point and dense result": lambda root: remove(root / "seed_0/rewind", dense(root) / "result.json"),
    "config and provenance": lambda root: remove(root / "config.yaml", root / "provenance.json"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A finished run of a ticket and a control; never changed."""
    made = config(prune={"rounds": 2}, run={"seeds": (0,), "arms": ("ticket", "random")})
    return made, play(made, tmp_path_factory.mktemp("whole")).paths.root


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_deleted_is_made_anew_with_the_same_bits(loss: str, whole: tuple[Config, Path], tmp_path: Path) -> None:
    made, finished = whole
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    LOSSES[loss](root)
    play(made, root)
    assert_same(root, proof(finished))


def contents(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below the replicates' folders, with its time of change."""
    every = [path for path in sorted(root.glob("seed_*/**/*")) if path.is_file()]
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in every}


EXTENSIONS: dict[str, dict[str, Any]] = {
    "rounds": {"prune": {"rounds": 3}},
    "seeds": {"run": {"seeds": (0, 1), "arms": ("ticket", "random")}},
    "arms": {"run": {"seeds": (0,), "arms": ("ticket", "random", "reinit")}},
    "draws": {"reinit": {"draws": 2}, "run": {"seeds": (0,), "arms": ("ticket", "random", "reinit")}},
}


@pytest.mark.slow
@pytest.mark.parametrize("more", EXTENSIONS)
def test_a_run_is_extended_without_touching_what_is_there(
    more: str, whole: tuple[Config, Path], tmp_path: Path
) -> None:
    finished = whole[1]
    extended = config(
        **{"prune": {"rounds": 2}, "run": {"seeds": (0,), "arms": ("ticket", "random")}} | EXTENSIONS[more]
    )
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    before = contents(root)
    lottery.run(run := established(extended, root), run.tasks)
    after = contents(root)
    assert {name: after[name] for name in before} == before
    assert len(RunPaths(root).results()) == len(run.tasks) > len(RunPaths(finished).results())
    if more == "rounds":  # the tickets found in two goes are those found in one
        assert_same(root, proof(play(extended, tmp_path / "at once").paths.root))


def test_a_second_call_does_nothing(whole: tuple[Config, Path], spy: Spy, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole[1], root)
    before = contents(root)
    play(whole[0], root)
    assert spy.fits == [] and contents(root) == before


# Another valid value of every field that changes results ...
BINDING = {
    "data.name": "mnist",
    "data.classes": "0-4",
    "data.shape": "[1,12,12]",
    "data.augment": "crop_flip",
    "data.noise_per_round": "fresh",
    "data.crop": "32",
    "data.held_out": "10",
    "data.lanes": "1",
    "data.window": "64",
    "data.scaled_decode": "true",
    "data.randaugment": "9",
    "data.faults": "0.01",
    "model.name": "conv2",
    "model.hidden": "[21,10]",
    "model.width": "3",
    "model.init": "own",
    "model.drop_path": "0.1",
    "train.duration": "30it",
    "train.batch_size": "50",
    "train.optimizer": "adam",
    "train.lr": "0.01",
    "train.momentum": "0.5",
    "train.weight_decay": "0.01",
    "train.decay": "weights",
    "train.schedule": "cosine",
    "train.milestones": "[5it]",
    "train.gamma": "0.2",
    "train.warmup": "1it",
    "train.label_smoothing": "0.1",
    "train.mixup": "0.2",
    "train.cutmix": "1.0",
    "train.clip": "1.0",
    "train.ema": "0.9",
    "train.sync_batchnorm": "true",
    "train.compact": "true",
    "train.eval_every": "5it",
    "prune.rate": "0.3",
    "prune.rates.conv": "0.3",
    "prune.rates.fc": "0.3",
    "prune.rates.output": "0.3",
    "prune.schedule": "target",
    "prune.densities": "[0.5,0.2]",
    "prune.scope": "layer",
    "prune.nm": "1:4",
    "prune.oneshot": "true",
    "prune.batches": "3",
    "prune.criterion": "another",
    "prune.weights": "ema",
    "prune.min_per_layer": "1",
    "prune.early_bird": "0.1",
    "transfer.layers": "body",
    "connectivity.vary": "order",
    "rewind.at": "1it",
    "rewind.keep": "[2it]",
    "rewind.recipe": "restart",
    "seeds.init": "7",
    "seeds.order": "7",
    "seeds.augment": "7",
    "seeds.mask": "7",
    "seeds.dropout": "7",
    "hardware.precision": "bf16",
}
# ... and of every field that does not.
FREE = {
    "data.dir": "elsewhere",
    "data.workers": "0",
    "data.cache": "elsewhere",
    "data.cache_gb": "1",
    "data.stage": "true",
    "train.micro_batch": "50",
    "train.checkpoint_every": "7it",
    "prune.rounds": "4",
    "prune.to": "0.1",
    "run.seeds": "0-2",
    "run.arms": "[ticket]",
    "run.patience": "2",
    "reinit.draws": "3",
    "transfer.sources": "[elsewhere]",
    "transfer.rounds": "2",
    "connectivity.children": "3",
    "connectivity.rounds": "1",
    "connectivity.next": "true",
    "connectivity.origin": "true",
    "rewind.candidates": "[0,5it]",
    "rewind.auto": "dense",
    "report.tolerance": "0.7",
    "hardware.accelerator": "cpu",
    "hardware.strategy": "fsdp2",
    "hardware.devices": "2",
    "hardware.nodes": "2",
    "hardware.threads": "2",
    "hardware.deterministic": "true",
    "hardware.channels_last": "true",
    "hardware.compile": "true",
    "hardware.scratch": "elsewhere",
    "hardware.timeout": "60",
    "tracking.wandb": "off",
    "tracking.project": "another",
    "tracking.entity": "another",
    "tracking.tags": "[another]",
    "tracking.artifacts": "checkpoints",
}
BASE = ["--train.duration=20it", "--train.batch_size=100", "--model.hidden=[20,10]"]


def test_every_field_is_known_to_change_results_or_not_to() -> None:
    unsure = fields_of(Config()).keys() ^ (BINDING.keys() | FREE.keys())
    assert not unsure, f"decide for {sorted(unsure)} whether it changes results (settings.FREE), and enter it above"
    assert binding(Config()).keys() == BINDING.keys()


@pytest.mark.parametrize("key", BINDING)
def test_a_config_that_changes_results_is_refused_by_name(key: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / "config.yaml"
    old, new = settings.parse(BASE), settings.parse([*BASE, f"--{key}={BINDING[key]}"])
    settings.establish(path, old)
    before = path.read_bytes()
    with pytest.raises(UserError, match=rf"{key} \(.* there, .* asked\).*--out") as caught:
        settings.establish(path, new)
    assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert digest(old) != digest(new)


@pytest.mark.parametrize(("key", "value"), [("prune.rounds", "4"), ("prune.to", "0.1")])
def test_the_end_of_a_schedule_changes_all_its_rounds(key: str, value: str, tmp_path: Path) -> None:
    """Free under prune.schedule=rate, whose rounds do not know where they end."""
    base = [*BASE, "--prune.schedule=target", "--prune.to=0.2"]
    old, new = settings.parse(base), settings.parse([*base, f"--{key}={value}"])
    assert digest(old) != digest(new)
    settings.establish(tmp_path / "config.yaml", old)
    with pytest.raises(UserError, match=key):
        settings.establish(tmp_path / "config.yaml", new)


@pytest.mark.parametrize("key", FREE)
def test_a_field_that_changes_no_result_may_change(key: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / "config.yaml"
    old, new = settings.parse(BASE), settings.parse([*BASE, f"--{key}={FREE[key]}"])
    settings.establish(path, old)
    settings.establish(path, new)
    assert digest(old) == digest(new)
    assert settings.load(path) == new


def test_the_refusal_comes_before_any_work(whole: tuple[Config, Path], tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole[1], root)
    before = contents(root)
    changed = replace(whole[0], train=replace(whole[0].train, lr=0.5))
    with pytest.raises(UserError, match=r"train\.lr \(0\.05 there, 0\.5 asked\)"):
        established(changed, root)
    assert contents(root) == before


def test_the_micro_batch_is_fixed_with_the_folder(whole: tuple[Config, Path], tmp_path: Path) -> None:
    made = established(whole[0], tmp_path / "run")
    assert made.config.train.micro_batch == 100 == settings.load(made.paths.config).train.micro_batch
    smaller = replace(whole[0], train=replace(whole[0].train, micro_batch=50))
    assert established(smaller, tmp_path / "run").micro_batch == 50
    larger = replace(whole[0], train=replace(whole[0].train, micro_batch=100))
    with pytest.raises(UserError, match=r"train\.micro_batch=100 differs from the run's 50"):
        established(larger, tmp_path / "run")


def test_other_images_are_refused(whole: tuple[Config, Path], tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole[1], root)
    held = read_json(root / "provenance.json")
    (root / "provenance.json").write_text(json.dumps({**held, "data": "0" * 64}))
    with pytest.raises(UserError, match=r"data\.dir holds other images"):
        established(whole[0], root)


# The names of existing run folders end in these. A change here orphans them: raise settings.SCHEMA if a default
# changed on purpose; a new field must be at its default in every shipped config, or those folders lose their names.
DIGESTS = {
    "cifar100_resnet18": "0ee349d2",
    "cifar10_conv2": "0ad605b5",
    "cifar10_conv4": "2a6faac0",
    "cifar10_conv6": "8c3e969c",
    "cifar10_resnet20": "cd74d1c4",
    "cifar10_vgg16": "5f9d16ab",
    "digits_lenet": "8aefb62d",
    "digits_methods": "717a00f5",
    "fashion_mnist_late_rewinding": "6b1ab66c",
    "fashion_mnist_lenet": "9b76b725",
    "fashion_mnist_vit": "b3922572",
    "imagenet_deit_small": "19ee0ac1",
    "imagenet_resnet50": "0621171d",
    "imagenet_resnet50_cosine": "16debd90",
    "imagenet_vit_small": "1b2e9fb9",
    "mnist_lenet": "cb474ef4",
    "transfer_lenet": "f9dccf73",
    "transfer_resnet": "648b64ac",
}


@pytest.mark.parametrize("name", settings.shipped_configs())
def test_the_hash_of_each_shipped_config_is_frozen(name: str) -> None:
    found = digest(settings.parse([name]))
    assert name in DIGESTS, f"a new config: enter {name!r}: {found!r} in DIGESTS, so that its run folder keeps its name"
    assert found == DIGESTS[name], f"{name} would look for its results in another folder: {found}; read the note above"


def test_the_hash_sees_no_order_and_no_default() -> None:
    words = ["--train.lr=0.3", "--prune.rate=0.4"]
    assert digest(settings.parse(words)) == digest(settings.parse(words[::-1]))
    assert digest(settings.parse(["--train.momentum=0.9"])) == digest(Config())

"""Mistakes and damage: exit code 2 and one line that names the key or the file, the value and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Lth, assert_told, cut, flip
from commands import lth as lth

from lth_scale import data

# --- the config -------------------------------------------------------------------------------------------------------

MODELS = "lenet_300_100, resnet14"
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (["--train.lrr=1"], ["train.lrr", "did you mean train.lr?", "train.duration, train.batch_size"]),
    "unknown section": (["--trian.lr=1"], ["trian.lr", "did you mean train.lr?"]),
    "section for a field": (["--train=5"], ["train is a section", "train.lr"]),
    "no value": (["--train.lr"], ["--train.lr has no value"]),
    "unknown data": (["--data.name=digit"], ["data.name='digit'", "did you mean 'digits'?", "cifar10, cifar100"]),
    "unknown model": (["--model.name=lenet_300_10"], ["model.name='lenet_300_10'", "did you mean", MODELS]),
    "unknown timm model": (["--model.name=timm:resnet9000"], ["model.name='timm:resnet9000'", "resnet200"]),
    "unknown scope": (["--prune.scope=lyer"], ["prune.scope='lyer'", "did you mean 'layer'?", "global, layer"]),
    "unknown criterion": (["--prune.criterion=size"], ["prune.criterion='size'", "magnitude"]),
    "unknown recipe": (["--rewind.recipe=again"], ["rewind.recipe='again'", "continue, fine_tuning"]),
    "unknown arm": (["--run.arms=[ticket,randm]"], ["run.arms='randm'", "did you mean 'random'?", "dense_from_k"]),
    "unknown optimizer": (["--train.optimizer=sdg"], ["train.optimizer='sdg'", "did you mean 'sgd'?", "adam, adamw"]),
    "unknown augment": (["--data.augment=flip"], ["data.augment='flip'", "crop_flip, none"]),
    "unknown precision": (["--hardware.precision=fp17"], ["hardware.precision='fp17'", "bf16, fp16, fp32"]),
    "unknown schedule": (["--train.schedule=linear"], ["train.schedule='linear'", "constant, cosine, multistep"]),
    "text for a number": (["--train.lr=fast"], ["train.lr='fast'", "a finite number"]),
    "not finite": (["--train.lr=nan"], ["train.lr='nan'", "a finite number"]),
    "fraction for a count": (["--train.batch_size=1.5"], ["train.batch_size='1.5'", "a whole number"]),
    "text for a truth": (["--hardware.deterministic=maybe"], ["hardware.deterministic='maybe'", "true or false"]),
    "text for a seed": (["--seeds.init=x"], ["seeds.init='x'", "a whole number or None"]),
    "truth for a rate": (["--prune.rates.fc=true"], ["prune.rates.fc='true'", "a finite number or None"]),
    "text for a list": (["--model.hidden=abc"], ["model.hidden='abc'", "a list"]),
    "text in a list": (["--model.hidden=[a,b]"], ["model.hidden", "a"]),
    "rate 1": (["--prune.rate=1"], ["prune.rate=1.0", "in (0, 1)"]),
    "rate 0": (["--prune.rate=0"], ["prune.rate=0.0", "in (0, 1)"]),
    "negative rate": (["--prune.rate=-0.5"], ["prune.rate=-0.5", "in (0, 1)"]),
    "rate of a kind": (["--prune.rates.output=1.5"], ["prune.rates.output=1.5", "in [0, 1)"]),
    "target density": (["--prune.to=2"], ["prune.to=2.0", "in (0, 1)"]),
    "k at the end": (["--rewind.at=20it"], ["rewind.at='20it' is step 20", "before the end of training, step 20"]),
    "k beyond the end": (["--rewind.at=3ep"], ["rewind.at='3ep' is step 30", "step 20"]),
    "keep beyond the end": (["--rewind.keep=[5it,30it]"], ["rewind.keep='30it' is step 30", "step 20"]),
    "k without a unit": (["--rewind.at=7"], ["rewind.at='7'", "'500it'", "'2ep'", "'0'"]),
    "duration": (["--train.duration=5 epochs"], ["train.duration='5 epochs'", "'500it'"]),
    "no steps": (["--train.duration=0"], ["train.duration='0'", "at least 1"]),
    "no grid": (["--train.eval_every=0"], ["train.eval_every='0'", "at least 1"]),
    "milestones": (["--train.milestones=[1it,2x]"], ["train.milestones='2x'", "'500it'"]),
    "warm-up": (["--train.warmup=long"], ["train.warmup='long'", "'500it'"]),
    "batch above the data": (["--train.batch_size=5000"], ["train.batch_size=5000", "1..1000"]),
    "batch over devices": (
        ["--hardware.devices=3"],
        ["train.batch_size=100", "3 devices", "hardware.devices", "1, 2, 4, 5, 10, 20, 25, 50, 100"],
    ),
    "micro-batch": (["--train.micro_batch=33"], ["train.batch_size=100", "train.micro_batch=33", "must divide"]),
    "no ticket": (["--run.arms=[random]"], ["run.arms=['random'] lacks 'ticket'", "add it"]),
    "seeds": (["--run.seeds=a"], ["run.seeds='a'", "0-4"]),
    "downward seeds": (["--run.seeds=4-0"], ["run.seeds=()", "0-4"]),
    "only an unknown key": (["--only", "sed=0"], ["--only='sed=0'", "seed=0,2", "arm=ticket,random", "round=3-7"]),
    "only an unknown value": (["--only", "seed=9"], ["--only seed=9", "selects none", "seed=0,1,2,3,4", "arm=random"]),
    "only no number": (["--only", "round=x"], ["--only round='x'", "0-4,7"]),
    "no jobs": (["--jobs=0"], ["--jobs=0", "1 or more"]),
    "jobs": (["--jobs=many"], ["--jobs", "many"]),
}


@pytest.mark.parametrize("plan", [[], ["--plan"]], ids=["run", "plan"])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_any_work(mistake: str, plan: list[str], lth: Lth, tmp_path: Path) -> None:
    words, parts = MISTAKES[mistake]
    assert_told(lth(*words, *plan), *parts)
    assert not (tmp_path / "run").exists()


FILES: dict[str, tuple[str | None, list[str]]] = {
    "missing": (None, ["my.yaml", "does not exist"]),
    "not YAML": ("train: [1\n", ["my.yaml", "cannot be read as YAML"]),
    "binary": ("\0\0\x01", ["my.yaml", "cannot be read as YAML"]),
    "a list": ("- train\n", ["my.yaml", "a YAML mapping", "data, model, train"]),
    "empty": ("", ["my.yaml", "a YAML mapping"]),
    "section without fields": ("train: 5\n", ["train is a section", "train.lr"]),
    "unknown key": ("train: {lrr: 5}\n", ["train.lrr", "did you mean train.lr?"]),
    "wrong type": ("train: {lr: fast}\n", ["train.lr='fast'", "a finite number"]),
    "out of range": ("prune: {rate: 2}\n", ["prune.rate=2.0", "in (0, 1)"]),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_config_file_is_named(kind: str, lth: Lth, tmp_path: Path) -> None:
    text, parts = FILES[kind]
    if text is not None:
        (tmp_path / "my.yaml").write_text(text)
    assert_told(lth(config="./my.yaml"), *parts)


def test_a_config_that_is_neither_file_nor_shipped(lth: Lth) -> None:
    assert_told(lth(config="digits"), "'digits'", "choose from: ", " digits_lenet, ")


def test_a_run_folder_that_is_a_file(lth: Lth, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert_told(lth(), "cannot write run/", "mend that")
    assert (tmp_path / "run").read_text() == "mine"


# --- the data ---------------------------------------------------------------------------------------------------------


def test_a_missing_data_set_names_the_command_that_makes_it(lth: Lth) -> None:
    assert_told(
        lth("--data.name=cifar10", "--data.dir=no/cifar"), "'no/cifar'", "lth data prepare cifar10 --out no/cifar"
    )
    assert_told(lth("--data.dir=nowhere"), "data.dir='nowhere'", "lth data prepare digits --out nowhere")


def test_another_data_set_than_named(lth: Lth, tmp_path: Path) -> None:
    data.prepare("digits", tmp_path / "shards", None, progress=False)
    assert_told(lth("--data.name=mnist", "--data.dir=shards"), "data.dir='shards' holds digits", "data.name='mnist'")


@pytest.mark.parametrize("damage", ["shard", "missing shard", "index"])
def test_a_damaged_data_set_is_named(damage: str, lth: Lth, tmp_path: Path) -> None:
    folder = tmp_path / damage.replace(" ", "_")
    data.prepare("digits", folder, None, progress=False)
    shard, index = folder / "train-000000.tar", folder / "index.json"
    if damage == "shard":
        flip(shard, shard.stat().st_size // 2)
    elif damage == "missing shard":
        shard.unlink()
    else:
        cut(index)
    name = index if damage == "index" else shard
    assert_told(lth(f"--data.dir={folder}"), str(name), "prepare the data anew" if name == shard else "remove it")
    assert not (tmp_path / "run" / "seed_0").exists()

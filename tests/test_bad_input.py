"""Mistakes and damage: exit code 2 and one line that names the key or the file, the value and what would be right."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from proofs import DONE, USER, assert_same, ended, fork, kill, proof
from tiny_runs import play, tiny

from lth_scale import checkpoint, claims, cli, data, files, launch, lottery, report, settings, status
from lth_scale.config import Config
from lth_scale.errors import UserError
from lth_scale.experiment import Experiment
from lth_scale.files import read_json
from lth_scale.paths import RunPaths

BASE = "train: {duration: 20it, batch_size: 100, eval_every: 10it}\nmodel: {hidden: [20, 10]}\nprune: {rounds: 1}\n"


class Inline:
    """A pool that works in this process, at once."""

    def schedule(self, work: Callable[..., None], args: list[Any]) -> Future[None]:
        future: Future[None] = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def lth(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Runs ``lth run`` on the base config: (exit code, what it said on stderr). Its workers are this process."""
    monkeypatch.setattr(launch, "_pool", lambda jobs, experiment: contextlib.nullcontext(Inline()))
    monkeypatch.setattr(report, "write_report", lambda runs, out: out / "report.html")  # takes seconds
    monkeypatch.chdir(tmp_path)
    launch._experiment.cache_clear()
    (tmp_path / "base.yaml").write_text(BASE)

    def run(*words: str, config: str = "base.yaml") -> tuple[int, str]:
        capfd.readouterr()
        code = cli.main(["run", config, "--out=run", *words])
        return code, capfd.readouterr().err

    return run


def assert_told(answer: tuple[int, str], *parts: str) -> None:
    code, told = answer
    assert code == 2, told
    first, *others = told.splitlines()
    assert first.startswith("lth: ") and "Traceback" not in told, told
    assert all(line.startswith("lth: seed=") for line in others), told  # a line per task
    missing = [part for part in parts if part not in told]
    assert not missing, f"{missing} not in: {told}"


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
    "unknown precision": (["--hardware.precision=fp17"], ["hardware.precision='fp17'", "bf16, fp32"]),
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
def test_a_mistake_is_named_before_any_work(
    mistake: str, plan: list[str], lth: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
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
def test_a_bad_config_file_is_named(kind: str, lth: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    text, parts = FILES[kind]
    if text is not None:
        (tmp_path / "my.yaml").write_text(text)
    assert_told(lth(config="./my.yaml"), *parts)


def test_a_config_that_is_neither_file_nor_shipped(lth: Callable[..., tuple[int, str]]) -> None:
    assert_told(lth(config="digits"), "'digits'", "choose from: digits_lenet, ")


def test_a_run_folder_that_is_a_file(lth: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert_told(lth(), "cannot write run/", "mend that")
    assert (tmp_path / "run").read_text() == "mine"


# --- the data ---------------------------------------------------------------------------------------------------------


def test_a_missing_data_set_names_the_command_that_makes_it(lth: Callable[..., tuple[int, str]]) -> None:
    assert_told(
        lth("--data.name=cifar10", "--data.dir=no/cifar"), "'no/cifar'", "lth data prepare cifar10 --out no/cifar"
    )
    assert_told(lth("--data.dir=nowhere"), "data.dir='nowhere'", "lth data prepare digits --out nowhere")


def test_another_data_set_than_named(lth: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    data.prepare("digits", tmp_path / "shards", None, progress=False)
    assert_told(lth("--data.name=mnist", "--data.dir=shards"), "data.dir='shards' holds digits", "data.name='mnist'")


@pytest.mark.parametrize("damage", ["shard", "missing shard", "index"])
def test_a_damaged_data_set_is_named(damage: str, lth: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
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


# --- the run folder ---------------------------------------------------------------------------------------------------


def flip(path: Path, at: int = -1) -> None:
    """Turn one bit around."""
    held = bytearray(path.read_bytes())
    held[at] ^= 1
    path.write_bytes(held)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = {"a bit": flip, "cut": cut, "empty": empty}
MADE = tiny(
    train={"duration": "20it", "batch_size": 100, "eval_every": "10it", "lr": 0.05},
    rewind={"at": "5it"},
    prune={"rounds": 1},
    run={"seeds": (0,), "arms": ("ticket", "random")},
)
RESTORING_T = tiny(
    train={"duration": "20it", "batch_size": 100, "eval_every": "10it", "lr": 0.05},
    rewind={"at": "5it", "recipe": "lr_rewinding"},
    prune={"rounds": 1},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return play(MADE, tmp_path_factory.mktemp("whole")).paths.root


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, of which round 1 is still to be trained."""
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    for path in root.glob("seed_0/*/round_01/result.json"):
        path.unlink()
    for path in root.glob("seed_0/*/round_01/checkpoint"):
        shutil.rmtree(path)
    return root


@pytest.fixture
def again(lth: Callable[..., tuple[int, str]], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """The same command on the copy."""
    (tmp_path / "made.yaml").write_text(settings.dump(MADE))
    return partial(lth, config="made.yaml")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_mask_is_named_and_made_anew_when_removed(
    damage: str, half: Path, again: Callable[..., tuple[int, str]], whole: Path
) -> None:
    mask = RunPaths(half).round(0, "ticket", 1).mask
    DAMAGES[damage](mask)
    assert_told(again(), str(mask.relative_to(half.parent)), "is damaged", "remove it to have it made anew")
    mask.unlink()
    play(MADE, half)
    assert_same(half, proof(whole))


def test_a_mask_of_another_network_is_refused(
    half: Path, again: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    other = play(tiny(model={"hidden": (30, 10)}, train={"duration": "1it"}, prune={"rounds": 0}), tmp_path / "other")
    shutil.copy(other.paths.round(0, "ticket", 1).mask, RunPaths(half).round(0, "ticket", 1).mask)
    assert_told(again(), "the mask does not fit the model", "fc1.weight", "(30, 64)", "(20, 64)")


@pytest.mark.parametrize(
    ("damage", "part"), [*itertools.product(DAMAGES, ["rank_00000.safetensors", "MANIFEST.json"]), ("missing", "")]
)
def test_a_damaged_rewind_point_is_named_and_made_anew_as_told(
    damage: str, part: str, half: Path, again: Callable[..., tuple[int, str]], whole: Path
) -> None:
    theta, dense = RunPaths(half).rewind(0, 5), RunPaths(half).round(0, "ticket", 0).result
    if damage == "missing":
        shutil.rmtree(theta)
    elif (damage, part) == ("a bit", "MANIFEST.json"):
        path = theta / part
        path.write_text(path.read_text().replace('"step": 5', '"step": 4'))
    else:
        DAMAGES[damage](theta / part)
    assert_told(again(), str(theta.relative_to(half.parent)), f"remove {dense.relative_to(half.parent)} too")
    shutil.rmtree(theta, ignore_errors=True)
    dense.unlink()
    play(MADE, half)
    assert_same(half, proof(whole))


def test_a_damaged_rewind_point_is_replaced_when_the_dense_round_runs_again(half: Path, whole: Path) -> None:
    flip(RunPaths(half).rewind(0, 5) / "rank_00000.safetensors")
    RunPaths(half).round(0, "ticket", 0).result.unlink()
    play(MADE, half)
    assert_same(half, proof(whole))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_final_checkpoint_that_a_recipe_needs(
    damage: str, lth: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    run = play(RESTORING_T, root)
    reference = proof(root)
    run.paths.round(0, "ticket", 1).result.unlink()
    shutil.rmtree(run.paths.round(0, "ticket", 1).checkpoints)
    dense = run.paths.round(0, "ticket", 0)
    DAMAGES[damage](next(dense.checkpoints.glob("step_*")) / "rank_00000.safetensors")
    (tmp_path / "restoring.yaml").write_text(settings.dump(RESTORING_T))
    code, told = lth(config="restoring.yaml")
    warning, _, line = told.partition("\n")
    assert warning.startswith("warning: ") and "is damaged" in warning
    assert_told((code, line), "round_00/checkpoint holds no sound checkpoint", "remove", "round_00/result.json")
    dense.result.unlink()
    play(RESTORING_T, root)
    assert_same(root, reference)


@pytest.mark.parametrize("earlier", [True, False], ids=["an earlier one", "none"])
def test_a_damaged_resumable_checkpoint_falls_back_loudly(
    earlier: bool, half: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """To an earlier checkpoint where a crash has left one, else to the start."""
    paths = RunPaths(half).round(0, "ticket", 0)
    last = next(paths.checkpoints.glob("step_*"))
    if earlier:
        kept = checkpoint.load_state(RunPaths(half).rewind(0, 5))
        extra = checkpoint.load_manifest(last)["extra"]
        checkpoint.save_state(paths.checkpoints / "step_00000005.attempt_1", kept, extra)
    flip(last / "rank_00000.safetensors")
    paths.result.unlink()
    run = Experiment.at(MADE, half).established()
    lottery.run(run, run.tasks[:1])
    told = capfd.readouterr().err
    assert told.startswith("warning: ") and str(last) in told and "going back to an earlier checkpoint" in told
    assert read_json(paths.result)["hashes"] == read_json(RunPaths(whole).round(0, "ticket", 0).result)["hashes"]
    assert [path.name for path in paths.checkpoints.iterdir()] == ["step_00000020.attempt_2"]


CONFIG_DAMAGES: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: text.index("lr:") + 1],
    "empty": lambda text: "",
    "a key": lambda text: text.replace("batch_size", "batch_sixe"),
    "a value": lambda text: text.replace("rate: 0.2", "rate: 9.2"),
    "not YAML": lambda text: text.replace("train:", "train: ["),
}


@pytest.mark.parametrize("damage", CONFIG_DAMAGES)
def test_a_damaged_config_of_a_run_is_named(
    damage: str, half: Path, again: Callable[..., tuple[int, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    path = half / "config.yaml"
    text = path.read_text()
    path.write_text(CONFIG_DAMAGES[damage](text))
    assert path.read_text() != text
    assert_told(again(), "run/config.yaml is damaged", "remove it and run the same command again")
    for command in (["status", "run"], ["report", "run"]):
        code = cli.main(command)
        assert_told((code, capfd.readouterr().err), "run/config.yaml is damaged")


def test_a_damaged_provenance_is_named(half: Path, again: Callable[..., tuple[int, str]]) -> None:
    for text in ("{", "[]", "{}"):
        (half / "provenance.json").write_text(text)
        assert_told(again(), "run/provenance.json is damaged", "remove it to have it made anew")


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_a_damaged_result_is_named_and_made_anew_when_removed(
    damage: str, whole: Path, again: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    result = RunPaths(root).round(0, "random", 1).result
    DAMAGES[damage](result)
    assert_told(again(), str(result.relative_to(tmp_path)), "is damaged", "remove it to have it made anew")
    result.unlink()
    play(MADE, root)
    assert_same(root, proof(whole))


def test_damaged_curves_of_an_interrupted_round_are_named(half: Path, again: Callable[..., tuple[int, str]]) -> None:
    paths = RunPaths(half).round(0, "ticket", 0)
    paths.result.unlink()
    metrics = paths.metrics(1)
    metrics.write_text(metrics.read_text().replace(",validation,", ";", 1))
    assert_told(again(), str(metrics.relative_to(half.parent)), "damaged", "remove the round's folder")


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder with room for 200 kB, and how to make more: a file system of its own, else one that is acted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=20m", str(folder)], check=True) and None
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "write", limited(os.write, 200_000))
            yield folder, patch.undo


def limited(write: Callable[[int, Any], int], room: int) -> Callable[[int, Any], int]:
    """A stand-in for a disk: writes are refused once so many bytes are on it."""
    left = [room]

    def wrapped(handle: int, content: Any) -> int:
        if handle > 2 and len(content) > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(content) if handle > 2 else 0
        return write(handle, content)

    return wrapped


def test_a_full_disk_loses_nothing(
    small_disk: tuple[Path, Callable[[], None]], lth: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder, enlarge = small_disk
    wide = tiny(model={"hidden": (200, 50)}, train={"duration": "20it", "optimizer": "adam", "batch_size": 100})
    (tmp_path / "wide.yaml").write_text(settings.dump(wide))
    data.load(wide.data)
    assert_told(
        lth(f"--out={folder / 'run'}", config="wide.yaml"),
        f"cannot write {folder / 'run'}",
        "No space left on device; nothing was lost, make room and run the same command again",
    )
    assert not list((folder / "run").rglob("*.tmp"))
    enlarge()
    play(wide, folder / "run")
    assert_same(folder / "run", proof(play(wide, tmp_path / "roomy").paths.root))


# --- several processes ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def holding(folder: Path, job: str) -> Iterator[int]:
    """A live process that works on a round; its pid."""
    ready, told = os.pipe()

    def hold() -> None:
        with claims.claimed(folder, job, only=True):
            os.write(told, b"x")
            os.read(os.pipe()[0], 1)

    pid = fork(hold)
    os.read(ready, 1)
    try:
        yield pid
    finally:
        kill(pid)
        ended(pid)


def test_the_second_process_on_a_task_is_told_whose_it_is(half: Path, again: Callable[..., tuple[int, str]]) -> None:
    folder = RunPaths(half).round(0, "ticket", 1).claims
    with holding(folder, "4711") as pid:
        claim = sorted(folder.iterdir())[-1].relative_to(half.parent)
        told = again("--only", "arm=ticket", "round=1")
        assert_told(told, f"pid {pid} on {socket.gethostname()} (job 4711)", f"remove {claim}", "ticket/round_01")
        assert status.state(Experiment.at(MADE, half).tasks[1], RunPaths(half)) == "running"
        run = Experiment.at(MADE, half).established()
        lottery.run(run, [task for task in run.tasks if (task.arm, task.round) == ("random", 1)])  # another task
    assert status.state(run.tasks[1], RunPaths(half)) == "interrupted"


def test_the_claim_of_a_dead_process_is_taken_over(half: Path, whole: Path) -> None:
    folder = RunPaths(half).round(0, "ticket", 1).claims
    before = len(list(folder.iterdir()))
    with holding(folder, "4711"):
        pass
    play(MADE, half)
    assert read_json(RunPaths(half).round(0, "ticket", 1).result)["attempt"] == before + 2
    assert_same(half, proof(whole))


def claim(folder: Path, **changes: Any) -> Path:
    """A claim of this very process, with something changed."""
    number = claims.acquire(folder)
    path = folder / f"{number:06d}"
    files.write_json(path, {**read_json(path), **changes})
    return path


def test_a_pid_that_was_given_to_another_process_is_dead(tmp_path: Path) -> None:
    claim(tmp_path, started="another boot/12345")
    assert claims.acquire(tmp_path) == 2


def test_without_that_the_claim_holds(tmp_path: Path) -> None:
    claim(tmp_path)
    with pytest.raises(UserError, match=f"pid {os.getpid()}"):
        claims.acquire(tmp_path)


def test_a_claim_of_another_host_is_respected(tmp_path: Path) -> None:
    path = claim(tmp_path, host="node17", pid=1, job="99")
    with pytest.raises(UserError, match=r"pid 1 on node17 \(job 99\).*if that host is gone for good remove") as caught:
        claims.acquire(tmp_path)
    assert str(path) in str(caught.value)
    path.unlink()
    assert claims.acquire(tmp_path) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1}', "\x00\x00"])
def test_a_torn_claim_is_nobodys(content: str, tmp_path: Path) -> None:
    (tmp_path / "000003").write_text(content)
    assert claims.acquire(tmp_path) == 4


def everyone(works: list[Callable[[], object]]) -> list[int]:
    """Exit codes of processes that all begin at the same moment."""
    gate, opened = os.pipe()

    def wait(work: Callable[[], object]) -> None:
        os.close(opened)
        os.read(gate, 1)  # ends when the last writer is gone
        work()

    pids = [fork(partial(wait, work)) for work in works]
    os.close(opened)
    os.close(gate)
    return [ended(pid) for pid in pids]


def established(config: Config, root: Path) -> None:
    Experiment.at(config, root).established()


def test_many_processes_make_the_folder_at_once(tmp_path: Path) -> None:
    data.load(MADE.data)
    root = tmp_path / "run"
    assert everyone([partial(established, MADE, root)] * 24) == [DONE] * 24
    assert sorted(path.name for path in root.iterdir()) == ["config.yaml", "provenance.json"]
    assert settings.binding(settings.load(root / "config.yaml")) == settings.binding(MADE)


def test_of_two_configs_at_once_one_gets_the_folder(tmp_path: Path) -> None:
    data.load(MADE.data)
    other = tiny(train={"lr": 0.9})
    codes = everyone([partial(established, config, tmp_path / "run") for _ in range(6) for config in (MADE, other)])
    assert sorted(set(codes)) == [DONE, USER]
    assert set(codes[::2]) != set(codes[1::2]) and len(set(codes[::2])) == len(set(codes[1::2])) == 1


def test_of_many_processes_one_gets_the_task(tmp_path: Path) -> None:
    blocked, release = os.pipe()

    def hold() -> None:
        os.close(release)
        claims.acquire(tmp_path / "claims")
        os.read(blocked, 1)  # alive until all others have tried

    pids = {fork(hold) for _ in range(12)}
    while len(pids) > 1:
        pid, code = os.wait()
        pids.remove(pid)
        assert os.waitstatus_to_exitcode(code) == USER
    os.close(release)
    assert ended(pids.pop()) == DONE
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["000001"]


def test_status_and_report_work_while_a_run_goes_on(half: Path, whole: Path) -> None:
    def work() -> None:
        run = Experiment.at(MADE, half).established()
        lottery.run(run, run.tasks)

    pid, looks = fork(work), 0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        status.status(half)
        report.terminal_table(half)
        report.headline(half)
        looks += 1
    assert looks > 1
    assert_same(half, proof(whole))

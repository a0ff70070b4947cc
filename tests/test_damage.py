"""Damaged files are named, with what to do; doing that, the same command ends in the same bits. So does a full disk."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import DAMAGES, MADE, Lth, assert_told, flip
from commands import again as again
from commands import half as half
from commands import lth as lth
from commands import whole as whole
from proofs import assert_same, proof
from tiny_runs import play, tiny

from lth_scale import checkpoint, cli, data, lottery, settings
from lth_scale.experiment import Experiment
from lth_scale.files import read_json
from lth_scale.paths import RunPaths

pytestmark = pytest.mark.slow

RESTORING_T = tiny(
    train={"duration": "20it", "batch_size": 100, "eval_every": "10it", "lr": 0.05},
    rewind={"at": "5it", "recipe": "lr_rewinding"},
    prune={"rounds": 1},
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_mask_is_named_and_made_anew_when_removed(damage: str, half: Path, again: Lth, whole: Path) -> None:
    mask = RunPaths(half).round(0, "ticket", 1).mask
    DAMAGES[damage](mask)
    assert_told(again(), str(mask.relative_to(half.parent)), "is damaged", "remove it to have it made anew")
    mask.unlink()
    play(MADE, half)
    assert_same(half, proof(whole))


def test_a_mask_of_another_network_is_refused(half: Path, again: Lth, tmp_path: Path) -> None:
    other = play(tiny(model={"hidden": (30, 10)}, train={"duration": "1it"}, prune={"rounds": 0}), tmp_path / "other")
    shutil.copy(other.paths.round(0, "ticket", 1).mask, RunPaths(half).round(0, "ticket", 1).mask)
    assert_told(again(), "the mask does not fit the model", "fc1.weight", "(30, 64)", "(20, 64)")


@pytest.mark.parametrize(
    ("damage", "part"), [*itertools.product(DAMAGES, ["rank_00000.safetensors", "MANIFEST.json"]), ("missing", "")]
)
def test_a_damaged_rewind_point_is_named_and_made_anew_as_told(
    damage: str, part: str, half: Path, again: Lth, whole: Path
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
def test_a_damaged_final_checkpoint_that_a_recipe_needs(damage: str, lth: Lth, tmp_path: Path) -> None:
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
    damage: str, half: Path, again: Lth, capfd: pytest.CaptureFixture[str]
) -> None:
    path = half / "config.yaml"
    text = path.read_text()
    path.write_text(CONFIG_DAMAGES[damage](text))
    assert path.read_text() != text
    assert_told(again(), "run/config.yaml is damaged", "remove it and run the same command again")
    for command in (["status", "run"], ["report", "run"]):
        code = cli.main(command)
        assert_told((code, capfd.readouterr().err), "run/config.yaml is damaged")


def test_a_damaged_provenance_is_named(half: Path, again: Lth) -> None:
    for text in ("{", "[]", "{}"):
        (half / "provenance.json").write_text(text)
        assert_told(again(), "run/provenance.json is damaged", "remove it to have it made anew")


def test_a_damaged_result_is_named_and_made_anew_when_removed(whole: Path, again: Lth, tmp_path: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    result = RunPaths(root).round(0, "random", 1).result
    DAMAGES["cut"](result)
    assert_told(again(), str(result.relative_to(tmp_path)), "is damaged", "remove it to have it made anew")
    result.unlink()
    play(MADE, root)
    assert_same(root, proof(whole))


def test_an_empty_result_is_none(whole: Path, tmp_path: Path) -> None:
    """Where there are no links, a marker is empty for a moment; a kill in that moment leaves it so."""
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    DAMAGES["empty"](RunPaths(root).round(0, "random", 1).result)
    play(MADE, root)
    assert_same(root, proof(whole))


def test_damaged_curves_of_an_interrupted_round_are_named(half: Path, again: Lth) -> None:
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


def test_a_full_disk_loses_nothing(small_disk: tuple[Path, Callable[[], None]], lth: Lth, tmp_path: Path) -> None:
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

"""Damage of a state that several ranks wrote: the file is named, nothing of it is read, and the one before is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import cut, empty, flip
from states import even, same, state, write

from lth_scale import checkpoint, files
from lth_scale.checkpoint import MANIFEST, Stored, layout
from lth_scale.checkpoint.stored import seal
from lth_scale.errors import UserError

FILES = [f"rank_0000{rank}.safetensors" for rank in range(3)]


def edit(change: Callable[[dict[str, Any]], object], sealed: bool = True) -> Callable[[Path], None]:
    """A manifest with something else in it, as one that was written wrong would have it."""

    def damage(folder: Path) -> None:
        path = folder / MANIFEST
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest | ({"sha256": seal(manifest)} if sealed else {})))

    return damage


def of(manifest: dict[str, Any], name: str, rank: int) -> dict[str, Any]:
    return next(r for r in manifest["ranges"] if (r["name"], r["rank"]) == (name, rank))


def rename(folder: Path) -> None:
    """A file that lacks a tensor, although its checksum holds."""
    path = folder / FILES[1]
    path.write_bytes(path.read_bytes().replace(b"weights/fc.bias", b"weights/fc.bios"))
    checksum = files.sha256_file(path)
    edit(lambda manifest: manifest["files"][1].update(sha256=checksum))(folder)


FC = "weights/fc.weight"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing rank": (lambda folder: (folder / FILES[1]).unlink(), rf"{FILES[1]} is damaged: it is missing"),
    "a cut rank": (lambda folder: cut(folder / FILES[2]), f"{FILES[2]} is damaged: its checksum"),
    "an empty rank": (lambda folder: empty(folder / FILES[0]), f"{FILES[0]} is damaged: its checksum"),
    "a bit of a number": (lambda folder: flip(folder / FILES[1]), f"{FILES[1]} is damaged: its checksum"),
    "a bit of a header": (lambda folder: flip(folder / FILES[1], 20), f"{FILES[1]} is damaged: its checksum"),
    "a folder for a rank": (
        lambda folder: ((folder / FILES[1]).unlink(), (folder / FILES[1]).mkdir()),
        f"{FILES[1]} is damaged",
    ),
    "a missing tensor": (rename, rf"{FILES[1]} is damaged: weights/fc.bias is missing"),
    "a missing manifest": (lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST} is missing"),
    "a cut manifest": (lambda folder: cut(folder / MANIFEST), f"{MANIFEST} is damaged"),
    "an empty manifest": (lambda folder: empty(folder / MANIFEST), f"{MANIFEST} is damaged"),
    "a list for a manifest": (lambda folder: (folder / MANIFEST).write_text("[]"), f"{MANIFEST} is damaged"),
    "a changed manifest": (edit(lambda m: m["extra"].update(seconds=2), sealed=False), f"{MANIFEST} is damaged"),
    "another step": (edit(lambda m: m.update(step=8)), f"{MANIFEST} is damaged"),
    "a gap": (edit(lambda m: of(m, FC, 1).update(length=9)), f"ranges of {FC} leave out 19 to 20"),
    "an overlap": (edit(lambda m: of(m, FC, 1).update(length=11)), f"ranges of {FC} overlap at 20"),
    "an end too soon": (edit(lambda m: of(m, FC, 2).update(length=9)), f"ranges of {FC} end at 29"),
    "a lost range": (edit(lambda m: m["ranges"].remove(of(m, FC, 0))), f"ranges of {FC} leave out 0 to 10"),
    "two shapes": (edit(lambda m: of(m, FC, 1).update(shape=[5, 6])), f"ranges of {FC} differ in shape"),
    "an unknown dtype": (edit(lambda m: of(m, FC, 1).update(dtype="float3")), f"{MANIFEST} is damaged"),
    "a negative length": (edit(lambda m: of(m, FC, 0).update(length=-1)), "-1 is not a count"),
    "no state's tensor": (edit(lambda m: of(m, "buffers/bn.count", 2).update(name="x")), "x is no tensor of a state"),
    "a file not listed": (edit(lambda m: m["files"].pop(1)), f"{FILES[1]} is not among its files"),
    "a file elsewhere": (edit(lambda m: m["files"][1].update(name="../x")), "'../x' is not the name of a rank's file"),
    "a range without a rank": (edit(lambda m: of(m, FC, 1).pop("rank")), f"{MANIFEST} is damaged"),
    "other dtypes than the file": (
        edit(lambda m: [r.update(dtype="torch.int32") for r in m["ranges"] if r["name"] == FC]),
        f"is damaged: {FC} is not what the manifest says",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of three ranks."""
    root = tmp_path_factory.mktemp("made")
    for step in (6, 7):
        write(root / f"step_{step:08d}.attempt_1", state(step, step=step), even(state(), 3))
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "checkpoint")


def last(root: Path) -> Path:
    return root / "step_00000007.attempt_1"


def test_undamaged(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The control."""
    found = checkpoint.latest(root)
    assert found is not None and found[0] == last(root) and same(found[1], state(7)) and checkpoint.sound(last(root))
    assert same(checkpoint.load_state(last(root)), state(7)) and capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_checkpoint_before_is_used(
    damage: str, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work, told = DAMAGES[damage]
    work(last(root))
    for read in (checkpoint.load_state, checkpoint.opened, lambda folder: Stored.open(folder).digest()):
        with pytest.raises(UserError, match=told.replace(".", r"\.")) as error:
            read(last(root))
        assert str(last(root)) in str(error.value)
        assert f"restore it or remove {last(root)}" in str(error.value) or "missing" in damage or "manifest" in damage
    assert not checkpoint.sound(last(root)) and checkpoint.sound(root / "step_00000006.attempt_1")
    assert not capfd.readouterr().err
    found = checkpoint.latest(root)
    assert found is not None and found[1].step == 6 and same(found[1], state(6))
    warning = capfd.readouterr().err
    assert warning.startswith("warning: ") and str(last(root)) in warning
    assert "going back to an earlier checkpoint" in warning and "Traceback" not in warning


def test_every_bit_of_a_folder_counts(root: Path) -> None:
    """One bit anywhere, in steps of a prime."""
    folder = last(root)
    for path in folder.iterdir():
        held = path.read_bytes()
        for at in range(0, len(held), 37 if path.name == MANIFEST else 13):
            path.write_bytes(held[:at] + bytes([held[at] ^ 1]) + held[at + 1 :])
            if path.name != MANIFEST or json_differs(held, path.read_bytes()):
                assert not checkpoint.sound(folder), (path.name, at)
        path.write_bytes(held)
    assert checkpoint.sound(folder)


def json_differs(one: bytes, other: bytes) -> bool:
    """Not where only the space between words has changed."""
    try:
        return bool(json.loads(one) != json.loads(other))
    except ValueError:
        return True


def test_ranges_are_read_only_after_their_file_was_checked(root: Path) -> None:
    """And a file that is not read from is not checked: opening costs nothing."""
    flip(last(root) / FILES[2])
    stored = Stored.open(last(root))
    assert stored.read("weights/fc.weight", 0, 20).shape == (20,)
    for start, stop in [(20, 30), (0, 30), (29, 30)]:
        with pytest.raises(UserError, match=FILES[2]):
            stored.read("weights/fc.weight", start, stop)


def test_all_damaged_is_none(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for folder in root.iterdir():
        flip(folder / FILES[0])
    assert checkpoint.latest(root) is None and capfd.readouterr().err.count("warning: ") == 2


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    """Below the checksums: no read beyond the file."""
    wanted = [layout.Range("weights/a", 0, 0, 4, (4,), torch.float32)]
    start, _ = layout.header(wanted)
    path = tmp_path / "x"
    path.write_bytes(start + bytes(16))
    assert layout.mapped(path, wanted)["weights/a"].tolist() == [0.0] * 4
    lies = [
        start + bytes(15),
        start.replace(b"[0,16]", b"[-4,12]") + bytes(16),
        start.replace(b"F32", b"I32") + bytes(16),
    ]
    lies += [
        b"\xff" * 8 + start,
        b"",
        b"\x02",
        (2).to_bytes(8, "little") + b"[]" + bytes(16),
        start.replace(b"[4]", b"[5]"),
    ]
    for lie in lies:
        path.write_bytes(lie)
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            layout.mapped(path, wanted)

"""Every kind of damage to a folder of shards is found and named; caches and full disks do no harm."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_folders import data, made, reload

from lth_scale.data import load, loading, verify
from lth_scale.errors import UserError
from lth_scale.files import sha256_file


def rewrite(folder: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Change entries of the first train shard and let the index agree with its bytes."""
    path = folder / "train-000000.tar"
    buffer = io.BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for member in old:
            entry = change(member.name, old.extractfile(member).read())  # type: ignore[union-attr]
            member.size = len(entry)
            new.addfile(member, io.BytesIO(entry))
    path.write_bytes(buffer.getvalue())
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["shards"][0]["sha256"] = sha256_file(path)
    (folder / "index.json").write_text(json.dumps(index))


def png(mode: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (5, 6)).save(buffer, "png")
    return buffer.getvalue()


def drop_shard(folder: Path) -> None:
    (folder / "train-000000.tar").unlink()


def truncate_inside(folder: Path) -> None:
    os.truncate(folder / "train-000000.tar", 2048 * 3 + 1024 + 512 + 20)


def truncate_between(folder: Path) -> None:
    os.truncate(folder / "train-000000.tar", 2048 * 3)


def flip_pixel_padding(folder: Path) -> None:
    path = folder / "train-000000.tar"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(suffix: str, entry: bytes, sample: int = 4) -> Callable[[Path], None]:
    name = f"train-{sample:08d}.{suffix}"
    return lambda folder: rewrite(folder, lambda member, old: entry if member == name else old)


def extra_sample(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["shards"][0]["samples"] -= 1
    (folder / "index.json").write_text(json.dumps(index))


def swap_labels(folder: Path) -> None:
    rewrite(folder, lambda name, old: b"0" if name.endswith("cls") else old)


DAMAGE = {
    "missing shard": (drop_shard, r"train-000000\.tar cannot be read"),
    "truncated inside a sample": (truncate_inside, r"train-000000\.tar is damaged after sample train-00000002"),
    "truncated between samples": (truncate_between, r"train-000000\.tar holds 3 samples \(last: train-00000002\)"),
    "checksum": (flip_pixel_padding, r"train-000000\.tar is damaged \(its checksum differs"),
    "label too large": (edit("cls", b"4"), r"train-000000\.tar: sample train-00000004: the label 4 is not in 0\.\.3"),
    "label negative": (edit("cls", b"-1"), r"sample train-00000004: the label -1"),
    "label not a number": (edit("cls", b"cat"), r"sample train-00000004: .*cat"),
    "damaged image": (edit("png", png("RGB")[:45]), r"sample train-00000004: the image is damaged"),
    "no image": (edit("png", b""), r"sample train-00000004: the image is damaged"),
    "another shape": (edit("png", png("L")), r"sample train-00000004: the image is uint8 \(1, 6, 5\), not uint8 \(3"),
    "one sample too many": (extra_sample, r"train-000000\.tar holds 17 samples .*the index says 16"),
    "labels exchanged": (swap_labels, r"differ from the index's checksum"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[kind]
    folder = made(tmp_path)
    verify(folder)
    damage(folder)
    for act in (verify, reload):
        with pytest.raises(UserError, match=message):
            act(folder)


@settings(max_examples=150)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(position: float, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "flipped"
    if not folder.exists():
        made(folder)
    path = folder / "test-000000.tar"
    whole = path.read_bytes()
    broken = bytearray(whole)
    broken[int(position * len(whole))] ^= 1 << bit
    path.write_bytes(broken)
    try:
        with pytest.raises(UserError, match=r"test-000000\.tar"):
            verify(folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 99}'])
def test_a_damaged_index_is_named(text: str, tmp_path: Path) -> None:
    (made(tmp_path) / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        verify(tmp_path)


@pytest.mark.parametrize("damage", ["short", "flipped", "empty"])
def test_a_damaged_decoded_cache_is_rebuilt(damage: str, tmp_path: Path) -> None:
    folder = made(tmp_path)
    expected = load(data(folder))
    (cache,) = folder.glob("decoded-*.safetensors")
    whole = cache.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    cache.unlink()
    cache.write_bytes({"short": whole[:-10], "flipped": flipped, "empty": b""}[damage])
    dataset = reload(folder)
    assert torch.equal(dataset.test.images, expected.test.images)
    assert cache.read_bytes() == whole


def test_a_folder_that_cannot_be_written_still_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path)

    def full(*_: object) -> None:
        raise UserError("no space left")

    monkeypatch.setattr(loading, "save_tensors", full)
    assert len(load(data(folder)).train) == 17
    assert not list(folder.glob("decoded-*"))


def test_a_full_disk_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lth_scale.files._write_all", full)
        with pytest.raises(UserError, match="No space left on device"):
            made(tmp_path)
    assert list(tmp_path.iterdir()) == []
    verify(made(tmp_path))

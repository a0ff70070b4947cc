"""``lth data verify`` finds every fault of encoded shards, and names the shard and the sample."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from imagenet_like import picture, write_folders
from webdataset import TarWriter

from lth_scale.data import index as indexing
from lth_scale.data import prepare, verify
from lth_scale.data.index import Shard
from lth_scale.data.streamed import samples
from lth_scale.data.streamed.samples import Samples
from lth_scale.errors import UserError
from lth_scale.files import sha256_file

FILE = "train-000001.tar"
KEY = "train-00000006"
"""The third sample of that shard."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    prepare("imagenet", root / "out", write_folders(root / "source"), progress=False, shard_size=4, jobs=1)
    return root / "out"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


def table(folder: Path) -> Samples:
    return samples.read(folder, indexing.read(folder).samples)["train"]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def rewrite(folder: Path, change: Callable[[int, bytes, int], tuple[bytes, int]]) -> None:
    """The shard written anew, its index and table made to agree: only what it holds can still be wrong."""
    index, rows = indexing.read(folder), table(folder)
    first = int((rows.shard < 1).sum())
    data = (folder / FILE).read_bytes()
    with TarWriter(str(folder / FILE), encoder=False, mtime=0) as writer:
        for row in range(first, first + 4):
            image, label = change(row - first, data[rows.offset[row] :][: rows.size[row]], int(rows.label[row]))
            writer.write({"__key__": f"train-{row:08d}", "jpg": image, "cls": str(label).encode()})
    made = (folder / FILE).read_bytes()
    columns = samples.read(folder, index.samples)
    for row in range(first, first + 4):
        image, label = change(row - first, data[rows.offset[row] :][: rows.size[row]], int(rows.label[row]))
        train = columns["train"]
        train.offset[row], train.size[row] = made.index(image), len(image)
        train.label[row], train.crc[row] = label, zlib.crc32(image)
    shards = list(index.splits["train"])
    shards[1] = Shard(FILE, 4, len(made), sha256_file(folder / FILE))
    splits = index.splits | {"train": tuple(shards)}
    table_hash = samples.write(folder, columns)
    checksum = indexing.encoded_checksum(splits)
    indexing.write(folder, replace(index, splits=splits, samples=table_hash, checksum=checksum))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(UserError, match=match):
        verify(folder, jobs=1)


def test_a_whole_folder_passes(folder: Path) -> None:
    assert verify(folder, jobs=1).shards == 9
    rewrite(folder, lambda row, image, label: (image, label))
    assert verify(folder, jobs=1).shards == 9, "the control: writing anew is no fault by itself"


def test_a_missing_shard(folder: Path) -> None:
    (folder / FILE).unlink()
    refused(folder, rf"{FILE} cannot be read \(No such file or directory\); restore the shard")


def test_a_truncated_shard(folder: Path) -> None:
    path, rows = folder / FILE, table(folder)
    data = path.read_bytes()
    path.write_bytes(data[: rows.offset[6] + 5])
    refused(folder, rf"{FILE} is damaged in or after sample train-0000000[56]")
    path.write_bytes(data[:-512])
    refused(folder, rf"{FILE} is damaged \(its checksum differs")


def test_every_kind_of_flipped_byte(folder: Path) -> None:
    path, rows = folder / FILE, table(folder)
    data = path.read_bytes()
    for row in range(4, 8):
        for position in (
            rows.offset[row],
            rows.offset[row] + rows.size[row] // 2,
            rows.offset[row] + rows.size[row] - 1,
        ):
            flip(path, int(position))
            refused(folder, rf"{FILE}: sample train-{row:08d}: its checksum is \d+, the table says {rows.crc[row]}")
            path.write_bytes(data)
    flip(path, int(rows.offset[6]) - 512 + 3)
    refused(folder, rf"{FILE} is damaged in or after sample train-0000000[56] \(bad checksum\)")
    path.write_bytes(data)
    flip(path, len(data) - 1)
    refused(folder, rf"{FILE} is damaged \(its checksum differs from the index\)")


def test_a_changed_label(folder: Path) -> None:
    path, rows = folder / FILE, table(folder)
    flip(path, path.read_bytes().index(f"{KEY}.cls".encode()) + 512)
    refused(folder, rf"{FILE}: sample {KEY}: its label is {rows.label[6] ^ 1}, the table says {rows.label[6]}|not in 0")


def test_a_label_out_of_range(folder: Path) -> None:
    rewrite(folder, lambda row, image, label: (image, 3 if row == 2 else label))
    refused(folder, rf"{FILE}: sample {KEY}: the label 3 is not in 0\.\.2")


@pytest.mark.parametrize("image", [b"not an image", picture(1)[:200], picture(1)[:-90], picture(1, kind="png")[:-200]])
def test_an_image_that_does_not_decode(image: bytes, folder: Path) -> None:
    rewrite(folder, lambda row, original, label: (image if row == 2 else original, label))
    refused(folder, rf"{FILE}: sample {KEY}: the image is damaged")


def test_a_shard_of_another_preparation(folder: Path) -> None:
    shutil.copy(folder / "train-000000.tar", folder / FILE)
    refused(folder, rf"{FILE}: sample train-00000000: its")
    shutil.copy(folder / "train-000006.tar", folder / "train-000005.tar")
    refused(folder, FILE)


def test_a_sample_more_or_less(folder: Path) -> None:
    rewrite(folder, lambda row, image, label: (image, label))
    index = indexing.read(folder)
    shards = list(index.splits["train"])
    shards[1] = replace(shards[1], samples=5)
    splits = index.splits | {"train": tuple(shards)}
    indexing.write(folder, replace(index, splits=splits, checksum=indexing.encoded_checksum(splits)))
    refused(folder, rf"{FILE} holds 4 samples \(last: train-00000007\), the index says 5, the table 4")


def test_a_changed_index_or_table(folder: Path) -> None:
    value = json.loads((folder / indexing.NAME).read_text())
    value["splits"]["train"]["shards"][1]["sha256"] = "0" * 64
    (folder / indexing.NAME).write_text(json.dumps(value))
    refused(folder, r"index\.json is damaged \(its checksum differs from its shards\)")
    flip(folder / samples.NAME, -1)
    refused(folder, r"samples\.safetensors is missing or damaged")
    (folder / samples.NAME).unlink()
    refused(folder, r"samples\.safetensors is missing or damaged")

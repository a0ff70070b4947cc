"""Shards made by WebDataset's own writer, or by anything else, are indexed where they lie."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from imagenet_like import picture
from webdataset import ShardWriter, TarWriter

from lth_scale.data import index as indexing
from lth_scale.data import prepare, verify
from lth_scale.data.index import Index
from lth_scale.data.streamed import samples
from lth_scale.data.streamed.foreign import expand
from lth_scale.errors import UserError
from lth_scale.files import sha256_file


def sample(number: int, **parts: Any) -> dict[str, Any]:
    return {"__key__": f"some/where/{number:04d}"} | (parts or {"jpg": picture(number), "cls": number % 3})


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WebDataset's own: train-0..2.tar of 4, 4 and 2 samples, test-0.tar of 3."""
    folder = tmp_path_factory.mktemp("shards")
    for name, count in (("train", 10), ("test", 3)):
        with ShardWriter(str(folder / f"{name}-%d.tar"), maxcount=4, verbose=0, encoder=True) as writer:
            for number in range(count):
                writer.write(sample(number))
    return folder


def index_of(tmp_path: Path, train: str, test: str, *more: str) -> Index:
    sources = [f"train={train}", f"test={test}", *more]
    return prepare("webdataset", tmp_path / "out", sources, progress=False, jobs=1).index


def test_shards_of_webdatasets_own_writer(shards: Path, tmp_path: Path) -> None:
    index = index_of(tmp_path, f"{shards}/train-*.tar", f"{shards}/test-0.tar")
    assert [(shard.file, shard.samples) for shard in index.splits["train"]] == [
        (str(shards / f"train-{number}.tar"), count) for number, count in enumerate((4, 4, 2))
    ]
    assert index.class_names == ("0", "1", "2") and index.storage == "encoded"
    for split in ("train", "test"):
        table = samples.read(tmp_path / "out", index.samples)[split]
        assert table.label.tolist() == [number % 3 for number in range(len(table))]
        for row in range(len(table)):
            shard = index.splits[split][table.shard[row]]
            with Path(shard.file).open("rb") as stream:
                assert os.pread(stream.fileno(), table.size[row], table.offset[row]) == picture(row)
            assert (shard.bytes, shard.sha256) == (Path(shard.file).stat().st_size, sha256_file(Path(shard.file)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["index.json", "samples.safetensors"]
    assert verify(tmp_path / "out", jobs=1).shards == 4


SPECS: dict[str, Callable[[Path], tuple[str, list[str]]]] = {
    "folder": lambda folder: (str(folder), ["test-0", "train-0", "train-1", "train-2"]),
    "glob": lambda folder: (f"{folder}/train-?.tar", ["train-0", "train-1", "train-2"]),
    "braces": lambda folder: (f"{folder}/train-{{0..1}}.tar", ["train-0", "train-1"]),
    "several": lambda folder: (f"{folder}/train-2.tar::{folder}/test-0.tar", ["train-2", "test-0"]),
    "file": lambda folder: (f"file:{folder}/train-{{2,0}}.tar", ["train-2", "train-0"]),
}


@pytest.mark.parametrize("kind", SPECS)
def test_what_a_source_stands_for(kind: str, shards: Path) -> None:
    spec, names = SPECS[kind](shards)
    assert expand(spec) == [str(shards / f"{name}.tar") for name in names]


def test_urls_and_commands_stay_as_they_are() -> None:
    assert expand("pipe:cat a-{0..1}.tar") == ["pipe:cat a-0.tar", "pipe:cat a-1.tar"]
    assert expand("https://host/{000..002}.tar") == [f"https://host/00{number}.tar" for number in range(3)]


def test_paths_are_made_absolute(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    assert expand("train-1.tar") == [str(shards / "train-1.tar")]


def test_shards_in_the_folder_itself_move_with_it(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for path in shards.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    index = index_of(tmp_path, f"{out}/train-*.tar", f"{out}/test-*.tar")
    assert [shard.file for shard in index.splits["train"]] == [f"train-{number}.tar" for number in range(3)]
    out.rename(tmp_path / "elsewhere")
    assert verify(tmp_path / "elsewhere", jobs=1).shards == 4


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_packed_shards_are_indexed_by_unpacked_offsets(
    suffix: str, pack: Callable[[bytes], bytes], shards: Path, tmp_path: Path
) -> None:
    for path in shards.iterdir():
        (tmp_path / (path.name + suffix)).write_bytes(pack(path.read_bytes()))
    index = index_of(tmp_path, f"{tmp_path}/train-*.tar{suffix}", f"{tmp_path}/test-0.tar{suffix}")
    table = samples.read(tmp_path / "out", index.samples)["train"]
    for row in range(10):
        path = Path(index.splits["train"][table.shard[row]].file)
        plain = (shards / path.with_suffix("").name).read_bytes()
        assert plain[table.offset[row] :][: table.size[row]] == picture(row)
        assert index.splits["train"][table.shard[row]].sha256 == sha256_file(path)
    verify(tmp_path / "out", jobs=1)


def test_webdatasets_writer_may_pack(tmp_path: Path) -> None:
    for name in ("train", "test"):
        with ShardWriter(str(tmp_path / f"{name}-%d.tar.gz"), maxcount=2, verbose=0) as writer:
            for number in range(4):
                writer.write(sample(number))
    index = index_of(tmp_path, f"{tmp_path}/train-{{0..1}}.tar.gz", f"{tmp_path}/test-*.tar.gz")
    assert [shard.samples for shard in index.splits["train"]] == [2, 2]


def test_a_command_is_a_source(shards: Path, tmp_path: Path) -> None:
    index = index_of(tmp_path, f"pipe:cat {shards}/train-{{0..2}}.tar", f"pipe:gzip -c {shards}/test-0.tar")
    assert index.splits["train"][2].file == f"pipe:cat {shards}/train-2.tar"
    assert index.splits["train"][2].sha256 == sha256_file(shards / "train-2.tar")
    verify(tmp_path / "out", jobs=1)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(shards: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shards)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_is_a_source(served: str, shards: Path, tmp_path: Path) -> None:
    index = index_of(tmp_path, f"{served}/train-{{0..2}}.tar", f"{served}/test-0.tar")
    assert [shard.samples for shard in index.splits["train"]] == [4, 4, 2]
    verify(tmp_path / "out", jobs=1)
    with pytest.raises(UserError, match=rf"{served}/train-9\.tar cannot be read"):
        prepare(
            "webdataset", tmp_path / "other", [f"train={served}/train-9.tar", f"test={shards}"], progress=False, jobs=1
        )


def write(path: Path, *found: dict[str, Any]) -> Path:
    with TarWriter(str(path)) as writer:
        for one in found:
            writer.write(one)
    return path


def test_a_validation_split_of_its_own(shards: Path, tmp_path: Path) -> None:
    more = write(tmp_path / "more.tar", sample(7))
    index = index_of(tmp_path, f"{shards}/train-*.tar", f"{shards}/test-0.tar", f"validation={more}")
    assert [index.count(split) for split in ("train", "validation", "test")] == [10, 1, 3]


def test_labels_in_json_and_other_files_beside(tmp_path: Path) -> None:
    odd = sample(0, webp=picture(0, kind="webp"), json={"label": 4, "source": "here"}, txt="a caption")
    deep = {"__key__": "a.b/plain", "input.png": picture(1, kind="png"), "cls": 1, "mask.npy": b"x" * 700}
    path = write(tmp_path / "odd.tar", odd, deep)
    index = index_of(tmp_path, str(path), str(path))
    table = samples.read(tmp_path / "out", index.samples)["train"]
    assert table.label.tolist() == [4, 1] and len(index.class_names) == 5
    data = path.read_bytes()
    images = [data[offset:][:size] for offset, size in zip(table.offset, table.size, strict=True)]
    assert images == [picture(0, kind="webp"), picture(1, kind="png")]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no label": (sample(5, jpg=picture(1)), "it has no label"),
    "no label in json": (sample(5, jpg=picture(1), json={"class": 1}), "it has no label"),
    "a label in words": (sample(5, jpg=picture(1), cls="cat"), "invalid literal for int"),
    "a negative label": (sample(5, jpg=picture(1), cls=-1), r"the label -1 is not in 0\.\."),
    "an absurd label": (sample(5, jpg=picture(1), cls=1 << 30), r"the label 1073741824 is not in 0\.\."),
    "no image": (sample(5, cls=1), "it has 0 images, not one"),
    "two images": (sample(5, cls=1, jpg=picture(1), png=picture(1, kind="png")), "it has 2 images, not one"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_samples_are_named(kind: str, tmp_path: Path) -> None:
    bad, told = BAD[kind]
    path = write(tmp_path / "bad.tar", sample(0), bad, sample(6))
    with pytest.raises(UserError, match=rf"bad\.tar: sample some/where/0005: {told}.*leave it out"):
        index_of(tmp_path, str(path), str(path))
    assert not (tmp_path / "out").exists()


def test_files_of_a_sample_that_lie_apart_are_two_samples(tmp_path: Path) -> None:
    path = write(tmp_path / "apart.tar", sample(0, jpg=picture(0)), sample(1, jpg=picture(1)), sample(0, cls=b"1"))
    with pytest.raises(UserError, match="sample some/where/0000: it has no label"):
        index_of(tmp_path, str(path), str(path))


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()


def damaged(data: bytes, kind: str) -> bytes:
    """A shard of four samples with something wrong near the third's label, or at the end."""
    *_, third, _, _, last = members(data)
    header, end = third.offset, last.offset_data + -(-last.size // 512) * 512
    return {
        "cut in a file": data[: third.offset_data + third.size // 2],
        "cut at a header": data[:header],
        "cut in a header": data[: header + 100],
        "no end": data[:end],
        "a flipped bit in a header": data[: header + 2] + bytes([data[header + 2] ^ 1]) + data[header + 3 :],
        "nothing": b"",
        "no tar": b"<html>" * 1000,
    }[kind]


KINDS = ["cut in a file", "cut at a header", "cut in a header", "no end", "a flipped bit in a header"]


@pytest.mark.parametrize("kind", [*KINDS, "nothing", "no tar"])
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_shards_are_refused(kind: str, packed: bool, shards: Path, tmp_path: Path) -> None:
    data = damaged((shards / "train-0.tar").read_bytes(), kind)
    path = tmp_path / "bad.tar"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(UserError, match=r"bad\.tar is damaged in or after sample"):
        index_of(tmp_path, str(path), str(path))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_control_tarfile_takes_damage_for_the_end(kind: str, shards: Path) -> None:
    data = (shards / "train-0.tar").read_bytes()
    assert len(members(damaged(data, kind))) == {"no end": 8}.get(kind, 4) and len(members(data)) == 8


def test_a_packed_shard_is_checked_to_its_end(shards: Path, tmp_path: Path) -> None:
    data = bytearray(gzip.compress((shards / "train-0.tar").read_bytes()))
    data[-6] ^= 1  # the checksum of what is packed
    (tmp_path / "bad.tar.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"bad\.tar\.gz is damaged.*CRC check failed"):
        index_of(tmp_path, f"{tmp_path}/bad.tar.gz", str(shards))


def test_a_command_that_fails_is_named(shards: Path, tmp_path: Path) -> None:
    broken = f"pipe:head -c 3000 {shards}/train-0.tar"
    with pytest.raises(UserError, match=r"pipe:head -c 3000.*damaged in or after sample some/where/000\d"):
        index_of(tmp_path, broken, str(shards))
    late = f"pipe:cat {shards}/train-0.tar; exit 3"
    with pytest.raises(UserError, match=r"exit 3 .*exit status 3"):
        index_of(tmp_path, late, str(shards))


def test_sources_without_a_split_are_refused(shards: Path, tmp_path: Path) -> None:
    def refused(match: str, *sources: str) -> None:
        with pytest.raises(UserError, match=match):
            prepare("webdataset", tmp_path / "out", sources, progress=False, jobs=1)

    refused("webdataset needs --source: --source train=SHARDS")
    refused("names no split; it must be --source train=SHARDS", str(shards))
    refused("--source tests=.* names no split", f"train={shards}", f"tests={shards}")
    refused("needs shards for train and for test", f"train={shards}")
    refused("holds no shards", f"train={tmp_path}", f"test={shards}")
    refused("holds no shards", f"train={tmp_path}/*.tar", f"test={shards}")
    refused(r"train-3\.tar does not exist", f"train={shards}/train-{{0..7}}.tar", f"test={shards}")
    empty = write(tmp_path / "empty.tar")
    refused("--source test=.* holds no samples", f"train={shards}", f"test={empty}")


def test_the_index_is_json_that_says_where_the_shards_are(shards: Path, tmp_path: Path) -> None:
    index_of(tmp_path, f"{shards}/train-*.tar", f"{shards}/test-0.tar")
    value = json.loads((tmp_path / "out" / indexing.NAME).read_text())
    assert value["storage"] == "encoded" and "shards as they were found" in value["split_rule"]
    assert value["splits"]["validation"] == {"samples": 0, "shards": []}

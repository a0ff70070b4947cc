"""ImageNet and class folders become shards: every byte kept, from every layout, in parallel, and resumed."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
from pathlib import Path

import imagenet_like
import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from imagenet_like import PER_CLASS, TEST, WNIDS, images, picture, write_archives, write_folders
from PIL import Image

from lth_scale import cli, files
from lth_scale.data import index as indexing
from lth_scale.data import prepare, verify
from lth_scale.data.definition import shuffled
from lth_scale.data.index import Index, Shard
from lth_scale.data.streamed import samples
from lth_scale.data.streamed.imagenet import DEVKIT, TRAIN, VAL, ground_truth
from lth_scale.data.streamed.scanning import Scan
from lth_scale.data.streamed.writing import JOURNAL, PLAN, fitted
from lth_scale.errors import UserError

SIZE = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folders(tmp_path_factory.mktemp("folders"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def made(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "imagenet"
    prepare("imagenet", out, folders, progress=False, shard_size=SIZE, jobs=1)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the plan, which names the source."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != PLAN)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def found(folder: Path, split: str) -> list[tuple[str, int, bytes]]:
    """What plain WebDataset reads: suffix, label, image."""
    urls = [str(folder / shard.file) for shard in indexing.read(folder).splits[split]]
    rows = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False) if urls else ():
        (suffix,) = {"jpg", "png"} & set(sample)
        rows.append((suffix, int(sample["cls"]), sample[suffix]))
    return rows


def test_webdataset_reads_every_byte_of_the_source(made: Path) -> None:
    for split, source in (("train", "train"), ("test", "val")):
        wanted = sorted((WNIDS.index(wnid), data) for wnid, _, data in images()[source])
        assert sorted((label, data) for _, label, data in found(made, split)) == wanted
    suffixes = [suffix for suffix, _, _ in found(made, "train")]
    assert suffixes.count("png") == len(WNIDS), "a PNG named JPEG is called what it is"


def test_the_index_tells_what_is_there(made: Path) -> None:
    index = indexing.read(made)
    assert (index.storage, index.shape, index.class_names) == ("encoded", (3, 0, 0), WNIDS)
    assert [shard.samples for shard in index.splits["train"]] == [4] * 6 + [3]
    assert [index.count(split) for split in ("train", "validation", "test")] == [len(WNIDS) * PER_CLASS, 0, TEST]
    assert (index.mean, index.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert "seed 2019" in index.split_rule and "byte for byte" in index.split_rule
    assert json.loads((made / PLAN).read_text())["seed"] == 2019
    assert not (made / JOURNAL).exists() and not list(made.glob(".*"))


def test_every_offset_of_the_table_is_the_image(made: Path) -> None:
    index = indexing.read(made)
    for split, table in samples.read(made, index.samples).items():
        wanted = found(made, split)
        assert len(table) == len(wanted)
        for row, (suffix, label, data) in enumerate(wanted):
            path = made / index.splits[split][table.shard[row]].file
            with path.open("rb") as stream:
                assert os.pread(stream.fileno(), table.size[row], table.offset[row]) == data
            assert table.label[row] == label
            assert table.sound[row] == (suffix == "jpg" and Image.open(io.BytesIO(data)).mode != "CMYK")
        assert split != "train" or 0 < table.sound.sum() < len(table)


def test_the_order_is_the_shuffled_one(made: Path) -> None:
    rows = shuffled(len(WNIDS) * PER_CLASS, "imagenet train")
    assert [data for _, _, data in found(made, "train")] == [images()["train"][row][2] for row in rows]
    assert rows.tolist() != sorted(rows), "the control: the source's order is another"


def test_both_layouts_give_the_same_bytes(made: Path, archives: Path, tmp_path: Path) -> None:
    prepare("imagenet", tmp_path / "out", archives, progress=False, shard_size=SIZE, jobs=1)
    assert contents(tmp_path / "out") == contents(made)


@pytest.mark.distributed
def test_the_bytes_do_not_depend_on_the_processes(made: Path, folders: Path, tmp_path: Path) -> None:
    prepare("imagenet", tmp_path / "out", folders, progress=False, shard_size=SIZE, jobs=2)
    assert contents(tmp_path / "out") == contents(made)
    shard = tmp_path / "out" / "train-000002.tar"
    shard.unlink()
    with pytest.raises(UserError, match=r"train-000002\.tar cannot be read"):
        verify(tmp_path / "out", jobs=2)


def stop_in_the_fourth_shard(source: Path, out: Path) -> None:
    """In a process of its own: prepare, and die with half a shard under its temporary name."""
    made, original = [], files.write_bytes

    def write(path: Path, data: bytes) -> None:
        if path.suffix == ".tar":
            made.append(path)
            if len(made) > 3:
                files.temporary(path).write_bytes(data[:100])
                os.kill(os.getpid(), signal.SIGKILL)
        original(path, data)

    files.write_bytes = write
    prepare("imagenet", out, source, progress=False, shard_size=SIZE, jobs=1)


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def killed(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preparation that was killed in the middle of its fourth shard."""
    out = tmp_path_factory.mktemp("killed") / "out"
    process = multiprocessing.get_context("fork").Process(target=stop_in_the_fourth_shard, args=(folders, out))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return out


def copied(folder: Path, into: Path) -> Path:
    into.mkdir()
    for path in folder.rglob("*"):
        target = into / path.relative_to(folder)
        target.mkdir() if path.is_dir() else target.write_bytes(path.read_bytes())
    return into


def test_a_stopped_preparation_goes_on(made: Path, folders: Path, killed: Path, tmp_path: Path) -> None:
    out = copied(killed, tmp_path / "out")
    before = stamps(out)
    assert sorted(before) == [f"train-{number:06d}.tar" for number in range(3)]
    assert not (out / indexing.NAME).exists()
    (out / "train-000001.tar").write_bytes(b"x" * (out / "train-000001.tar").stat().st_size)
    prepare("imagenet", out, folders, progress=False, shard_size=SIZE, jobs=1)
    after = stamps(out)
    kept = {name for name in before if after[name] == before[name]}
    assert kept == {"train-000000.tar", "train-000002.tar"}, "whole shards stay, the one that was damaged does not"
    assert contents(out) == contents(made), "nothing tells that it was stopped"


def test_a_shard_of_a_version_with_another_table_is_made_anew(
    made: Path, folders: Path, killed: Path, tmp_path: Path
) -> None:
    out = copied(killed, tmp_path / "out")
    before, journal = stamps(out), out / JOURNAL / "train-000001.safetensors"
    tensors, told = files.load_tensors(journal)
    files.save_tensors(journal, {"rows": tensors["rows"][:, :4].contiguous()}, told)
    prepare("imagenet", out, folders, progress=False, shard_size=SIZE, jobs=1)
    assert {name for name in before if stamps(out)[name] == before[name]} == {"train-000000.tar", "train-000002.tar"}
    assert contents(out) == contents(made)


def test_a_stopped_preparation_is_continued_as_it_was_begun(folders: Path, killed: Path, tmp_path: Path) -> None:
    out = copied(killed, tmp_path / "out")
    before = contents(out)
    with pytest.raises(UserError, match=r"another preparation.*shard_size was 4, is now 5"):
        prepare("imagenet", out, folders, progress=False, shard_size=5, jobs=1)
    with pytest.raises(UserError, match="max_side was 0, is now 8"):
        prepare("imagenet", out, folders, progress=False, shard_size=SIZE, max_side=8, jobs=1)
    with pytest.raises(UserError, match="the source's files changed"):
        prepare("imagenet", out, write_folders(tmp_path / "moved"), progress=False, shard_size=SIZE, jobs=1)
    assert contents(out) == before


def test_a_whole_folder_is_left_as_it_is(made: Path) -> None:
    before = stamps(made)
    assert prepare("imagenet", made, "no/longer/there", progress=False).shards == 9
    assert stamps(made) == before
    with pytest.raises(UserError, match="--shard-size 4, not 5"):
        prepare("imagenet", made, progress=False, shard_size=5)
    with pytest.raises(UserError, match="already holds imagenet"):
        prepare("jpeg_folder", made, progress=False)


def test_bounded_images_are_encoded_anew_and_the_index_says_so(made: Path, folders: Path, tmp_path: Path) -> None:
    prepare("imagenet", tmp_path / "out", folders, progress=False, shard_size=SIZE, max_side=17, jobs=1)
    index = indexing.read(tmp_path / "out")
    assert "shorter side exceeds 17 pixels" in index.split_rule and "not the source's" in index.split_rule
    small, whole = found(tmp_path / "out", "train"), found(made, "train")
    for (suffix, label, data), (_, same, original) in zip(small, whole, strict=True):
        width, height = Image.open(io.BytesIO(original)).size
        assert label == same
        if min(width, height) <= 17:
            assert data == original
        else:
            image = Image.open(io.BytesIO(data))
            assert (suffix, image.size, image.mode) == ("jpg", (round(width * 17 / height), 17), "RGB")
    changed = [min(Image.open(io.BytesIO(data)).size) > 17 for _, _, data in whole]
    assert 0 < sum(changed) < len(changed)
    verify(tmp_path / "out", jobs=1)


@given(width=st.integers(1, 60), height=st.integers(1, 60), bound=st.integers(1, 40))
def test_bounding_keeps_the_shape(width: int, height: int, bound: int) -> None:
    data = picture(width, (width, height))
    suffix, small = fitted(data, bound)
    size = Image.open(io.BytesIO(small)).size
    assert suffix == "jpg" and (small == data) == (min(width, height) <= bound)
    if small != data:
        assert min(size) == bound and abs(max(size) - max(width, height) * bound / min(width, height)) <= 0.5


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "webp", "ppm", "tiff"])
def test_images_are_named_by_what_they_are(kind: str) -> None:
    data = picture(1, kind=kind)
    assert fitted(data, 0) == ({"jpeg": "jpg"}.get(kind, kind), data)


def test_the_labels_of_the_development_kit(archives: Path, tmp_path: Path) -> None:
    assert ground_truth(archives / DEVKIT) == [wnid for wnid, _, _ in images()["val"]]
    (tmp_path / DEVKIT).write_bytes((archives / DEVKIT).read_bytes()[:200])
    with pytest.raises(UserError, match=r"devkit_t12\.tar\.gz"):
        ground_truth(tmp_path / DEVKIT)


def refused(source: Path, out: Path, match: str, name: str = "imagenet") -> None:
    with pytest.raises(UserError, match=match):
        prepare(name, out, source, progress=False, jobs=1)
    assert not (out / indexing.NAME).exists()


def test_what_is_missing_is_named(folders: Path, archives: Path, tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "out", r"is not ImageNet.*train/ and val/.*ILSVRC2012_img_train\.tar")
    with pytest.raises(UserError, match="imagenet needs --source: train/ and val/"):
        prepare("imagenet", tmp_path / "out", progress=False)
    partial = tmp_path / "partial"
    partial.mkdir()
    for name in (TRAIN, VAL):
        (partial / name).symlink_to(archives / name)
    refused(partial, tmp_path / "out", r"devkit_t12\.tar\.gz is missing")
    strange = write_folders(tmp_path / "strange")
    (strange / "val" / "n99999999").mkdir()
    refused(strange, tmp_path / "out", "n99999999: no such class in the training images")


@pytest.mark.parametrize("cut", [600, 1600, 2100, -2000])
def test_a_damaged_archive_is_named(cut: int, archives: Path, tmp_path: Path) -> None:
    data = (archives / TRAIN).read_bytes()
    whole = data.rstrip(b"\0")
    (tmp_path / TRAIN).write_bytes(whole[:cut])
    for name in (VAL, DEVKIT):
        (tmp_path / name).symlink_to(archives / name)
    refused(tmp_path, tmp_path / "out", r"ILSVRC2012_img_train\.tar is damaged")


def test_labels_must_fit_the_images(archives: Path, tmp_path: Path) -> None:
    for name in (TRAIN, DEVKIT):
        (tmp_path / name).symlink_to(archives / name)
    (tmp_path / VAL).write_bytes(imagenet_like.tar([("ILSVRC2012_val_00000000.JPEG", picture(1))]))
    refused(tmp_path, tmp_path / "out", f"holds 1 images, {DEVKIT} labels {TEST}")


def test_an_image_that_is_none_is_named_before_it_is_packed(tmp_path: Path) -> None:
    source = write_folders(tmp_path / "source")
    (source / "train" / WNIDS[1] / "notes.txt").write_text("no image by its name")
    (source / "train" / WNIDS[1] / "._hidden.JPEG").write_bytes(b"hidden")
    prepare("imagenet", tmp_path / "fine", source, progress=False, jobs=1)
    (source / "train" / WNIDS[1] / "broken.JPEG").write_bytes(b"\xff\xd8 nothing")
    refused(source, tmp_path / "out", rf"train/{WNIDS[1]}/broken\.JPEG is not a readable image.*remove or replace")


def write_classes(folder: Path, first: int, count: int, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for name in classes:
        (folder / name / "deeper").mkdir(parents=True)
        for number in range(count):
            place = folder / name / ("deeper" if number == 1 else ".") / f"{number}.png"
            place.write_bytes(picture(first + number, kind="png"))


def counts(index: Index) -> tuple[int, int, int]:
    return index.count("train"), index.count("validation"), index.count("test")


@pytest.mark.parametrize(
    ("others", "wanted"),
    [
        ((), (10, 0, 0)),
        (("val",), (10, 0, 4)),
        (("test",), (10, 0, 4)),
        (("validation",), (10, 0, 4)),
        (("val", "test"), (10, 4, 4)),
        (("validation", "test"), (10, 4, 4)),
    ],
)
def test_class_folders_of_splits(others: tuple[str, ...], wanted: tuple[int, int, int], tmp_path: Path) -> None:
    write_classes(tmp_path / "source" / "train", 0, 5)
    for number, name in enumerate(others, 1):
        write_classes(tmp_path / "source" / name, 100 * number, 2)
    index = prepare("jpeg_folder", tmp_path / "out", tmp_path / "source", progress=False, jobs=1).index
    assert counts(index) == (wanted if others else (9, 0, 1)) and index.class_names == ("cat", "dog")
    assert [f"the folder {name}" in index.split_rule for name in others] == [True] * len(others)


def test_a_single_level_of_class_folders_is_cut(tmp_path: Path) -> None:
    write_classes(tmp_path / "source", 0, 12)
    summary = prepare("jpeg_folder", tmp_path / "out", tmp_path / "source", progress=False, jobs=1)
    assert counts(summary.index) == (22, 0, 2)
    assert "test: a tenth of the images, by a fixed seed" in summary.index.split_rule
    everything = [row for split in ("train", "test") for row in found(tmp_path / "out", split)]
    wanted = [("png", label, picture(number, kind="png")) for label in range(2) for number in range(12)]
    assert sorted(everything) == sorted(wanted)


def test_bad_class_folders_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", tmp_path / "out", "is not a folder", "jpeg_folder")
    write_classes(tmp_path / "one", 0, 3, ("cat",))
    refused(tmp_path / "one", tmp_path / "out", "gives 3 images of 1 classes", "jpeg_folder")
    write_classes(tmp_path / "two" / "train", 0, 3)
    for name in ("val", "validation"):
        write_classes(tmp_path / "two" / name, 50, 1)
    refused(tmp_path / "two", tmp_path / "out", "holds val, validation; one of them is too many", "jpeg_folder")
    (tmp_path / "three" / "val" / "cat").mkdir(parents=True)
    write_classes(tmp_path / "three" / "train", 0, 3)
    refused(tmp_path / "three", tmp_path / "out", "holds no test images", "jpeg_folder")


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("digits", {"jobs": 2}, "--jobs=2 is not valid; digits has no use for it"),
        ("image_folder", {"max_side": 9}, "--max-side=9 is not valid; image_folder has no use for it"),
        ("imagenet", {"size": 32}, "--size=32 is not valid; imagenet has no use for it"),
        ("imagenet", {"shard_size": 0}, "--shard-size=0 is not valid; it must be 1 or more"),
        ("webdataset", {"max_side": 256}, "--max-side=256 is not valid; webdataset has no use for it"),
        ("imagenet", {"source": ["a", "b"]}, "imagenet takes one --source, not 2"),
    ],
)
def test_options_that_mean_nothing_are_refused(name: str, options: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        prepare(name, tmp_path / "out", progress=False, **options)


def test_the_command_line(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["data", "prepare", "imagenet", "--source", str(folders), "--out", str(out)]
    assert cli.main([*words, "--shard-size", "10", "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "imagenet: 3 classes; 27 train, 0 validation, 7 test images" in said and "4 shards" in said
    assert "this is not the whole of imagenet, which has 1,000 classes, 1,281,167 train" in said
    assert said.splitlines()[-1] == f"next: lth data verify {out}"
    assert cli.main(["data", "verify", str(out), "--jobs", "1"]) == 0
    assert "4 shards" in capsys.readouterr().out
    assert cli.main(["data", "verify", str(out), "--jobs", "0"]) == 2


def test_indexes_written_before_there_were_encoded_sets_are_read(made: Path, tmp_path: Path) -> None:
    value = json.loads((made / indexing.NAME).read_text())
    del value["storage"], value["samples"]
    (tmp_path / indexing.NAME).write_text(json.dumps(value))
    index = indexing.read(tmp_path)
    assert (index.storage, index.samples) == ("pixels", "")
    (tmp_path / indexing.NAME).write_text(json.dumps(value | {"storage": "stone"}))
    with pytest.raises(UserError, match="storage 'stone'"):
        indexing.read(tmp_path)


def test_a_scan_of_our_shard_gives_its_checksum(made: Path) -> None:
    (shard, *_) = indexing.read(made).splits["test"]
    scan = Scan(made, shard.file, 3, "")
    keys = [entry.key for entry in scan]
    assert Shard(shard.file, len(keys), scan.bytes, scan.sha256) == shard
    assert keys == [f"test-{number:08d}" for number in range(len(keys))]
    assert np.all(samples.read(made, indexing.read(made).samples)["test"].label < 3)

"""Shards: what prepare writes, plain WebDataset reads; every kind of damage is named; digits make themselves."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from shard_folders import content, data, made, reload
from sklearn.datasets import load_digits

from lth_scale import config
from lth_scale.data import datasets, default_dir, describe, load, loading, prepare, verify
from lth_scale.data import index as indexing
from lth_scale.data.dataset import SPLITS
from lth_scale.data.definition import Images, hold_out, shuffled
from lth_scale.data.shards import shard_sizes
from lth_scale.errors import UserError
from lth_scale.files import sha256_file

SIZES = {
    "digits": (1000, 200, 597),
    "mnist": (55_000, 5000, 10_000),
    "fashion_mnist": (55_000, 5000, 10_000),
    "cifar10": (45_000, 5000, 10_000),
    "cifar100": (45_000, 5000, 10_000),
    "svhn": (68_257, 5000, 26_032),
    "imagenet": (1_281_167, 0, 50_000),
}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lth_scale.data.shards.MAX_SAMPLES", 6)


@pytest.mark.parametrize("name", list(datasets))
def test_sizes_are_known_without_the_data(name: str, tmp_path: Path) -> None:
    known = datasets[name].description
    if known is None:
        with pytest.raises(UserError, match="lth data prepare"):
            describe(data(tmp_path, name))
        return
    assert known.name == name and known == describe(data(tmp_path / "absent", name))
    assert (known.train, known.validation, known.test) == SIZES[name]


@pytest.mark.parametrize("name", list(datasets))
def test_missing_data_is_refused_with_the_command_that_makes_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        load(data(tmp_path / "absent", name))
    assert f"lth data prepare {name} --out {tmp_path / 'absent'}" in str(refusal.value)


def test_unknown_names_are_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.name='mnits'.*did you mean 'mnist'.*cifar10, cifar100, digits"):
        load(config.Data(name="mnits"))
    with pytest.raises(UserError, match=r"data\.name='mnits'"):
        prepare("mnits", tmp_path)


def test_digits_make_themselves_with_the_stated_split() -> None:
    dataset = load(config.Data())
    splits = (dataset.train, dataset.validation, dataset.test)
    assert tuple(map(len, splits)) == SIZES["digits"]
    found = sorted(bytes(row) for split in splits for row in split.images.numpy().reshape(-1, 64))
    original = np.rint(load_digits().images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    assert found == sorted(map(bytes, original)), "every image once, in one split only"
    assert "597 are test" in indexing.read(default_dir("digits")).split_rule
    assert load(config.Data()) is dataset


def test_digits_content_never_changes() -> None:
    assert load(config.Data()).checksum == "209d3b1f4877ec0845499dc819a523c8246768f3b81e78f6ccb8fff440d5e613"


def test_the_held_out_samples_are_fixed_and_disjoint() -> None:
    images = Images(np.arange(60_000, dtype=np.uint8)[:, None, None, None], np.arange(60_000))
    rest, held = hold_out(images, 5000, "mnist")
    assert len(held) == 5000 and sorted([*rest.labels, *held.labels]) == list(range(60_000))
    assert held.labels[:5].tolist() == np.sort(shuffled(60_000, "mnist")[:5000])[:5].tolist()
    assert shuffled(8, "mnist").tolist() == [7, 1, 2, 3, 0, 6, 5, 4], "frozen: another cut is another data set"
    assert shuffled(60_000, "fashion_mnist")[:3].tolist() == [26646, 47911, 7638]


@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_verify_load_round_trip(channels: int, tmp_path: Path, small_shards: None) -> None:
    expected = content(channels)
    folder = made(tmp_path, channels)
    summary = verify(folder)
    assert summary.shards == 3 + 1 + 2 and summary.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    for dataset in (load(data(folder)), reload(folder)):
        for split in SPLITS:
            assert getattr(dataset, split).images.numpy().tobytes() == getattr(expected, split).images.tobytes()
            assert getattr(dataset, split).labels.tolist() == getattr(expected, split).labels.tolist()
    assert describe(data(folder)).shape == (channels, 6, 5)
    assert (describe(data(folder)).classes, dataset.classes, dataset.checksum) == (4, 4, summary.index.checksum)


@pytest.mark.parametrize("channels", [1, 3])
def test_plain_webdataset_reads_the_shards(channels: int, tmp_path: Path, small_shards: None) -> None:
    dataset = load(data(made(tmp_path, channels)))
    shards = [str(path) for path in sorted(tmp_path.glob("train-*.tar"))]
    kind = "torchrgb8" if channels == 3 else "torchl8"
    pipeline = webdataset.WebDataset(shards, shardshuffle=False).decode(kind).to_tuple("png", "cls", "__key__")
    images, labels, keys = zip(*pipeline, strict=True)
    assert torch.equal(torch.stack(images).view(-1, channels, 6, 5), dataset.train.images)
    assert list(labels) == dataset.train.labels.tolist()
    assert keys == tuple(f"train-{position:08d}" for position in range(len(keys)))


def test_the_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        made(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["index.json", "test-000000.tar", "train-000000.tar", "validation-000000.tar"]
    assert all(sha256_file(tmp_path / "a" / name) == sha256_file(tmp_path / "b" / name) for name in files)


def test_a_whole_folder_is_left_alone_and_another_set_refused(tmp_path: Path) -> None:
    prepare("digits", tmp_path, progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    prepare("digits", tmp_path, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="already holds digits"):
        prepare("mnist", tmp_path, progress=False)
    with pytest.raises(UserError, match=r"holds digits, not data\.name='mnist'"):
        load(data(tmp_path, "mnist"))


@given(samples=st.integers(0, 20_000), pixels=st.integers(1, 1 << 29))
def test_shards_hold_every_sample(samples: int, pixels: int) -> None:
    sizes = shard_sizes(samples, pixels)
    assert sum(sizes) == samples and all(0 < size <= 5000 for size in sizes)


def die_at_replace(number: int, folder: Path) -> None:
    """In a child process: prepare digits, and be gone at the given replace."""
    replace, calls = os.replace, iter(range(1, 100))

    def deadly(*args: object) -> None:
        if next(calls) == number:
            os._exit(9)
        replace(*args)  # type: ignore[arg-type]

    os.replace = deadly  # type: ignore[assignment]
    prepare("digits", folder, progress=False)
    os._exit(0)


@pytest.mark.kill
def test_a_killed_prepare_starts_anew_and_ends_the_same(tmp_path: Path) -> None:
    prepare("digits", tmp_path / "whole", progress=False)
    for number in range(1, 5):
        folder = tmp_path / str(number)
        child = multiprocessing.get_context("fork").Process(target=die_at_replace, args=(number, folder))
        child.start()
        child.join()
        assert child.exitcode == 9 and not (folder / "index.json").exists()
        prepare("digits", folder, progress=False)
        for path in (tmp_path / "whole").iterdir():
            assert path.read_bytes() == (folder / path.name).read_bytes()


def load_digits_into(results: multiprocessing.Queue[str], cache: str) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    loading._load.cache_clear()
    results.put(load(config.Data()).checksum)


@pytest.mark.distributed
def test_digits_are_made_by_many_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=load_digits_into, args=(results, str(tmp_path))) for _ in range(12)]
    for child in children:
        child.start()
    found = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 12 and len(set(found)) == 1
    assert [path.name for path in (tmp_path / "lth_scale").iterdir()] == ["digits"], "no temporary folder is left"
    verify(tmp_path / "lth_scale" / "digits")


def test_stale_shards_of_an_earlier_attempt_are_removed(tmp_path: Path) -> None:
    (tmp_path / "train-000007.tar").write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    made(tmp_path)
    assert not (tmp_path / "train-000007.tar").exists() and (tmp_path / "notes.txt").exists()


def test_the_index_says_everything(tmp_path: Path) -> None:
    value = json.loads((made(tmp_path) / "index.json").read_text())
    assert {"name", "classes", "class_names", "shape", "splits", "mean", "std", "split_rule", "checksum"} <= set(value)
    assert value["splits"]["train"]["samples"] == 17 and len(value["mean"]) == len(value["std"]) == 3
    assert set(value["splits"]["train"]["shards"][0]) == {"file", "samples", "bytes", "sha256"}
    assert dataclasses.asdict(indexing.read(tmp_path))["name"] == "image_folder"

"""Streamed data sets: what is served, held out and evaluated, and what happens to samples that cannot be read."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from streamed_folders import (
    CROP,
    batches,
    data,
    jpeg,
    make_folder,
    moved,
    opened,
    rows,
    shard_of,
    write_index,
    write_tar,
)
from torch import Tensor

from lth_scale.data import index as indexing
from lth_scale.data.dataset import SPLITS, SplitName
from lth_scale.data.index import Index
from lth_scale.data.streamed import boxes, loading, samples, shards
from lth_scale.data.streamed.decode import Look, eval_image, train_image
from lth_scale.data.streamed.loading import EVALUATION_BATCH, Streamed, evaluation, open_streamed
from lth_scale.data.streamed.looks import Box
from lth_scale.data.streamed.samples import Samples
from lth_scale.errors import UserError
from lth_scale.files import load_tensors, save_tensors, sha256_bytes

TRAIN = [9, 6, 11, 7]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed") / "folder"
    make_folder(folder, TRAIN, test=[4, 6, 1])
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "folder"))


def labels(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[int]:
    return [label for _, y in pairs for label in y.tolist()]


def test_it_says_what_a_data_set_in_memory_says(pristine: Path) -> None:
    dataset, index = opened(pristine), indexing.read(pristine)
    assert (dataset.name, dataset.classes, dataset.shape) == (index.name, 33, (3, CROP, CROP))
    assert (dataset.mean, dataset.std, dataset.checksum) == (index.mean, index.std, index.checksum)
    assert [dataset.length(split) for split in SPLITS] == [33, 0, 11]
    images = torch.arange(2 * 3 * 4, dtype=torch.uint8).reshape(2, 3, 2, 2)
    expected = (images / 255 - torch.tensor(index.mean).view(3, 1, 1)) / torch.tensor(index.std).view(3, 1, 1)
    assert torch.allclose(dataset.normalise(images), expected, atol=1e-6)


@pytest.mark.parametrize("augment", ["none", "resized_crop"])
def test_micro_batches_are_the_images_of_the_order_as_the_decoder_sees_them(pristine: Path, augment: str) -> None:
    dataset = opened(pristine, augment=augment)
    served = batches(dataset, micro_batch=4, noise=2)
    assert (served.steps_per_epoch, served.accumulation, served.micro_batch, len(served)) == (4, 2, 4, 24)
    look = Look(CROP, "none" if augment == "none" else "resized_crop", False, 0)
    count = 0
    for number, (x, y) in enumerate(served):
        step, part = divmod(number, 2)
        wanted = served.global_batch(step)[4 * part : 4 * part + 4].tolist()
        assert x.dtype == torch.uint8 and y.dtype == torch.int64 and y.tolist() == wanted
        expected = [train_image(jpeg(row), look, 5, 2, step // 4, row) for row in wanted]
        assert torch.equal(x, torch.stack(expected))
        count += 1
    assert count == len(served)


def test_an_epoch_holds_each_sample_once(pristine: Path) -> None:
    served = labels(batches(opened(pristine), stop=4))
    assert len(served) == 32 and len(set(served)) == 32


def test_no_global_random_state_is_read_or_moved(pristine: Path) -> None:
    first = [x for x, _ in batches(opened(pristine), stop=2)]
    torch.manual_seed(1234)
    np.random.seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    again = [x for x, _ in batches(opened(pristine), stop=2)]
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # type: ignore[arg-type]
    assert all(map(torch.equal, first, again))


def test_settings_that_cannot_be_served_are_refused(pristine: Path) -> None:
    dataset = opened(pristine)
    with pytest.raises(UserError, match=r"data.lanes=2 does not divide train.batch_size=9"):
        batches(dataset, batch_size=9)
    with pytest.raises(UserError, match=r"data.lanes=2 is not a multiple of 4 devices"):
        batches(dataset, world=4)
    with pytest.raises(UserError, match=r"train.batch_size=34 is not valid; it must be in 1..33"):
        batches(dataset, batch_size=34)
    with pytest.raises(UserError, match=r"not a multiple of train.micro_batch=3"):
        batches(dataset, micro_batch=3)


# Held out, and evaluation


def test_what_is_held_out_is_validation_and_nothing_is_lost(pristine: Path) -> None:
    dataset = opened(pristine, held_out=8)
    parts = {split: labels(evaluation(dataset, split, None, 0, 1)) for split in SPLITS}
    assert [len(parts[split]) for split in SPLITS] == [25, 8, 11]
    assert sorted(parts["train"] + parts["validation"]) == list(range(33))
    assert parts["validation"] != list(range(8)) and parts["validation"] == sorted(parts["validation"])
    assert parts["validation"] == labels(evaluation(opened(pristine, held_out=8), "validation", None, 0, 1))
    served = labels(batches(dataset, stop=6))
    assert not set(served) & set(parts["validation"])


def test_of_a_table_that_knows_no_sound_images_all_are_decoded_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tables were before they had that column; the images are the same, and so is what the index says of them."""
    before, parts = torch.cat([x for x, _ in batches(opened(folder))]), list[Box]()
    decode_box = boxes.Stream.decode

    def counted(self: boxes.Stream, box: Box, fast: bool) -> object:
        parts.append(box)
        return decode_box(self, box, fast)

    monkeypatch.setattr(boxes.Stream, "decode", counted)
    assert torch.equal(torch.cat([x for x, _ in batches(opened(folder))]), before) and len(parts) == 96
    columns, told = load_tensors(folder / samples.NAME)
    older = {name: column for name, column in columns.items() if not name.endswith(".sound")}
    assert len(older) == len(columns) - 3
    table = sha256_bytes(save_tensors(folder / samples.NAME, older, told))
    indexing.write(folder, replace(indexing.read(folder), samples=table))
    assert torch.equal(torch.cat([x for x, _ in batches(opened(folder))]), before) and len(parts) == 96


def test_augmentation_of_a_sample_does_not_depend_on_what_is_held_out(pristine: Path) -> None:
    dataset, look = opened(pristine, held_out=8), Look(CROP, "resized_crop", False, 0)
    for x, y in batches(dataset, stop=2):
        for image, row in zip(x, y.tolist(), strict=True):
            assert torch.equal(image, train_image(jpeg(row), look, 5, 0, 0, row))


def test_held_out_that_leaves_nothing_or_meets_a_validation_split_is_refused(pristine: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.held_out=33 is not valid; it must be below 33"):
        opened(pristine, held_out=33)
    make_folder(tmp_path / "own", [4], validation=[3])
    assert opened(tmp_path / "own").length("validation") == 3
    with pytest.raises(UserError, match=r"data.held_out=1 is not valid: webdataset has a validation split of its own"):
        opened(tmp_path / "own", held_out=1)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluation_counts_every_sample_once(
    pristine: Path, split: SplitName, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches that are the same for any number of ranks, dealt out in turn."""
    monkeypatch.setattr(loading, "EVALUATION_BATCH", 3)
    dataset = opened(pristine)
    alone = [y.tolist() for _, y in evaluation(dataset, split, None, 0, 1)]
    assert sorted(itertools.chain(*alone)) == list(range(dataset.length(split)))
    for rank in range(world):
        assert [y.tolist() for _, y in evaluation(dataset, split, None, rank, world)] == alone[rank::world]


def test_evaluation_shows_the_centre_in_batches(tmp_path: Path) -> None:
    make_folder(tmp_path, [2], test=[EVALUATION_BATCH, 3])
    served = list(evaluation(opened(tmp_path), "test", None, 0, 1))
    assert [len(y) for _, y in served] == [EVALUATION_BATCH, 3]
    for row in (0, 5, EVALUATION_BATCH - 1):
        assert torch.equal(served[0][0][row], eval_image(jpeg(2000 + row), CROP))


def test_a_part_is_spread_evenly_over_the_split(pristine: Path) -> None:
    dataset = opened(pristine)
    part = [labels(evaluation(dataset, "train", 5, rank, 2)) for rank in range(2)]
    assert sorted([*itertools.chain(*part)]) == [0, 8, 16, 24, 32]
    assert labels(evaluation(dataset, "train", 99, 0, 1)) == list(range(33))


# Faults: each names shard and sample and what to do, or is replaced and counted.


def overwrite(path: Path, offset: int, content: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(content)] = content
    path.write_bytes(whole)


def table_of(folder: Path) -> dict[SplitName, Samples]:
    return samples.read(folder, indexing.read(folder).samples)


def rewrite(folder: Path, tables: dict[SplitName, Samples]) -> Index:
    index = indexing.read(folder)
    return write_index(folder, index.splits, tables, index.class_names)


def other_image(folder: Path, data: bytes) -> None:
    """Row 12, the fourth of the second shard, has these bytes, as the index says."""
    index, tables = indexing.read(folder), table_of(folder)
    path = folder / "train-000001.tar"
    write_tar(path, [(row, data if row == 12 else jpeg(row)) for row in range(9, 15)])
    changed = np.array(rows(path, 1), np.int64).T
    for column, values in zip(fields(Samples), changed, strict=True):
        getattr(tables["train"], column.name)[9:15] = values
    shards_ = {**index.splits, "train": (*index.splits["train"][:1], shard_of(path, 6), *index.splits["train"][2:])}
    write_index(folder, shards_, tables, index.class_names)


def not_an_image(folder: Path) -> None:
    other_image(folder, b"no image")


def cut_short(folder: Path) -> None:
    """Only the last rows are lost, which few crops look at: a decoder of these would not notice."""
    other_image(folder, jpeg(12, (300, 60))[:-20])


def flipped_bit(folder: Path) -> None:
    overwrite(folder / "train-000001.tar", int(table_of(folder)["train"].offset[12]) + 100, b"\xaa\x55\xaa\x55")


def truncated(folder: Path) -> None:
    """The second shard ends in the middle of its last image but two."""
    path = folder / "train-000001.tar"
    path.write_bytes(path.read_bytes()[: int(table_of(folder)["train"].offset[12]) + 30])


def missing(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()


def wrong_label(folder: Path) -> None:
    tables = table_of(folder)
    tables["train"].label[12] = 1000
    rewrite(folder, tables)


FAULTS = {
    not_an_image: "the image is damaged",
    cut_short: "the image is damaged .Premature end",
    flipped_bit: "its bytes differ from their checksum",
    truncated: "the shard ends [0-9]+ bytes before its end",
    missing: "the shard cannot be opened .No such file or directory.",
    wrong_label: "the label 1000 is not in 0..32",
}
BAD = {
    not_an_image: {12},
    cut_short: {12},
    flipped_bit: {12},
    truncated: {12, 13, 14},
    missing: set(range(9, 15)),
    wrong_label: {12},
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_stops_with_a_line_that_names_shard_and_sample(folder: Path, fault: object, workers: int) -> None:
    fault(folder)  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        dataset = opened(folder, workers=workers)
        for _ in batches(dataset, stop=8):
            pass
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    expected = pytest.raises(UserError, match=FAULTS[fault])  # type: ignore[index]
    with expected:
        raise caught.value
    assert message.startswith(f"{folder}/train-000001.tar: sample ") and " of train (at byte " in message
    row = int(message.split(" of train")[0].rsplit(" ", 1)[1])
    assert row in BAD[fault] and str(table_of(folder)["train"].offset[row]) in message  # type: ignore[index]
    assert "data.faults" in message


def stand_in(row: int, bad: set[int], whole_shard: bool) -> int:
    if row not in bad:
        return row
    return 15 if whole_shard else stand_in((row + 1) % 33, bad, False)


@pytest.mark.parametrize("fault", FAULTS)
def test_with_a_share_a_bad_sample_is_replaced_by_the_next_logged_once_and_the_same_everywhere(
    folder: Path, fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    plain = [batches(opened(folder), stop=8).global_batch(step) for step in range(8)]
    fault(folder)  # type: ignore[operator]
    bad, whole = BAD[fault], fault is missing  # type: ignore[index]
    dataset = opened(folder, faults=0.2)
    with caplog.at_level(logging.WARNING, logger="lth_scale.data"):
        one = list(batches(dataset, stop=8))
    expected = [stand_in(row, bad, whole) for row in np.concatenate(plain).tolist()]
    assert labels(one) == expected
    assert len(dataset.ledger.seen["train"]) == len(caplog.records) == len(bad)
    named = {int(record.getMessage().split(" of train")[0].rsplit(" ", 1)[1]) for record in caplog.records}
    assert named == bad
    other = opened(folder, faults=0.2, workers=2)
    for (x, _), (again, _) in zip(one, batches(other, stop=8), strict=True):
        assert torch.equal(x, again)
    ranks = [list(batches(opened(folder, faults=0.2), stop=8, rank=rank, world=2)) for rank in range(2)]
    for (x, _), (first, _), (second, _) in zip(one, *ranks, strict=True):
        assert torch.equal(x, torch.cat([first, second]))


def test_more_bad_samples_than_the_share_allows_stop(folder: Path) -> None:
    missing(folder)
    with pytest.raises(UserError, match=r"4 of the 33 samples of train are bad, more than data.faults=0.1 allows"):
        labels(batches(opened(folder, faults=0.1), stop=8))


def test_when_nothing_can_be_read_it_stops(folder: Path) -> None:
    for path in folder.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(UserError, match=r"no sample of train can be read; the last: .*/train-00000[0-3].tar: sample "):
        labels(batches(opened(folder, faults=0.99), stop=1))


def test_evaluation_replaces_and_stops_as_training_does(folder: Path) -> None:
    (folder / "test-000001.tar").unlink()
    with pytest.raises(UserError, match=r"test-000001.tar: sample 4 of test \(at byte "):
        labels(evaluation(opened(folder), "test", None, 0, 1))
    assert labels(evaluation(opened(folder, faults=0.9), "test", None, 0, 1)) == [0, 1, 2, 3, *[10] * 7]


def test_a_fault_of_a_held_out_sample_is_named_as_what_it_is_on_disk(folder: Path) -> None:
    held = labels(evaluation(opened(folder, held_out=8), "validation", None, 0, 1))
    number = next(number for number in range(4) if sum(TRAIN[:number]) <= held[0] < sum(TRAIN[: number + 1]))
    (folder / f"train-{number:06d}.tar").unlink()
    with pytest.raises(UserError, match=rf"train-{number:06d}.tar: sample {held[0]} of train"):
        labels(evaluation(opened(folder, held_out=8), "validation", None, 0, 1))


def test_a_table_that_does_not_fit_the_index_is_refused(folder: Path) -> None:
    tables = table_of(folder)
    tables["train"] = tables["train"].take(np.arange(32))
    with pytest.raises(UserError, match=r"samples.safetensors does not fit the index \(train\)"):
        open_streamed(folder, rewrite(folder, tables), data(folder))
    (folder / "samples.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"samples.safetensors is missing or damaged"):
        opened(folder)


# Files


def test_few_files_are_open_at_a_time(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    dataset = opened(pristine)
    assert sorted(labels(evaluation(dataset, "train", None, 0, 1))) == list(range(33))
    assert len(dataset.shards._open) == 2 and dataset.shards.opened == 4


def test_shards_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    for number in (0, 2):
        shutil.move(folder / f"train-{number:06d}.tar", tmp_path / "else")
    moved(folder, {"train-000000.tar": str(tmp_path / "else" / "train-000000.tar")})
    moved(folder, {"train-000002.tar": (tmp_path / "else" / "train-000002.tar").as_uri()})
    assert labels(evaluation(opened(folder), "train", None, 0, 1)) == list(range(33))


def test_a_cache_too_small_for_what_is_read_side_by_side_is_refused(folder: Path) -> None:
    moved(folder, {f"train-{number:06d}.tar": f"http://127.0.0.1:9/{number}.tar" for number in range(4)})
    with pytest.raises(UserError, match=r"data.cache_gb=1e-06 is too small: data.lanes=2 with data.window=4 read"):
        opened(folder, cache_gb=1e-6)
    assert opened(folder, cache_gb=1.0).length("train") == 33


def test_the_index_may_name_fewer_classes_than_the_table_uses_only_with_faults(folder: Path) -> None:
    index = indexing.read(folder)
    few = replace(index, class_names=index.class_names[:30])
    with pytest.raises(UserError, match=r"train-000003.tar: sample 30 of train .*the label 30 is not in 0..29"):
        open_streamed(folder, few, data(folder))
    dataset: Streamed = open_streamed(folder, few, data(folder, faults=0.5))
    assert labels(evaluation(dataset, "train", None, 0, 1)) == [*range(30), 0, 0, 0]
